"""Options and decisions that training and drawing share: the base, the device, the preset."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import typer

from unziplora_cli.cli.completion import model_names
from unziplora_cli.cli.session import Session

if TYPE_CHECKING:
    from unziplora_cli.diffusion.base import BaseRef
    from unziplora_cli.project.store import Project

BASE = typer.Option(
    help="Base model: sdxl, mini (built in), a Hugging Face id, a folder, or a .safetensors file.",
    show_default=False,
    autocompletion=model_names,
)
VAE = typer.Option(
    help="Another autoencoder: a folder or an id, as madebyollin/sdxl-vae-fp16-fix.", show_default=False
)
DEVICE = typer.Option(help="auto, cpu, cuda, cuda:N or mps.")


def find_base(session: Session, spec: str | None) -> "BaseRef":
    """The base to use; says so when the choice was not the user's."""
    from unziplora_cli.diffusion.base import resolve_base

    base, notice = resolve_base(spec, offline=session.offline)
    if notice:
        session.output.message(notice)
    return base


def project_base(session: Session, spec: str | None, projects: "Sequence[Project]") -> "BaseRef":
    """The base that projects were trained on, or the one that ``spec`` names; says when it has changed."""
    from unziplora_cli.workflows.drawing import shared_base

    found = find_base(session, spec or shared_base(projects))
    trained = projects[0].manifest.base.hash
    if spec is None and trained and found.fingerprint != trained:
        session.output.warning(f"The base {found.spec} is no longer what {projects[0].name} was trained on.")
    return found


def preset_for(base: "BaseRef") -> str:
    """The preset that fits a base: its own for the built-in one, else the paper's."""
    return "mini" if base.kind == "builtin" else "paper"
