"""export, import and check: LoRA files of other programs."""

import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from unziplora_cli.cli._options import BASE, project_names
from unziplora_cli.cli._output import Session, Table, format_size
from unziplora_cli.errors import UsageError

if TYPE_CHECKING:
    from unziplora_cli.workflows.export_lora import ExportedFile, FileCheck

PANEL = "Exchange"
PROJECT = typer.Argument(
    metavar="PROJECT", help="Name of a project.", show_default=False, autocompletion=project_names
)


class Part(StrEnum):
    content = "content"
    style = "style"
    combined = "combined"
    all = "all"


class Format(StrEnum):
    kohya = "kohya"
    ldm = "ldm"
    diffusers = "diffusers"
    peft = "peft"


class Dtype(StrEnum):
    fp16 = "fp16"
    bf16 = "bf16"
    fp32 = "fp32"


def register(app: typer.Typer) -> None:
    """Add these commands to the program."""
    app.command("export", rich_help_panel=PANEL)(export)
    app.command("import", rich_help_panel=PANEL)(import_)
    app.command("check", rich_help_panel=PANEL)(check)


def export(
    ctx: typer.Context,
    project: Annotated[str, PROJECT],
    part: Annotated[
        Part,
        typer.Option(
            help="content or style alone, both combined in one file, or all: content, style and their "
            "merge weights as three files."
        ),
    ] = Part.all,
    to: Annotated[
        Format,
        typer.Option(
            help="kohya is read by every program; ldm is kohya's with the names of SDXL's original code; "
            "peft and diffusers (the older names) are for diffusers alone."
        ),
    ] = Format.kohya,
    dtype: Annotated[Dtype, typer.Option(help="Number format of the file.")] = Dtype.fp16,
    rank: Annotated[
        int | None, typer.Option(min=1, help="Most rank of any layer; the relative error is told.")
    ] = None,
    style_from: Annotated[
        str | None,
        typer.Option(
            "--with",
            metavar="PROJECT",
            help="For --part combined: take the style of this project.",
            show_default=False,
            autocompletion=project_names,
        ),
    ] = None,
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Folder, or for one part a .safetensors file.")
    ] = Path(),
    picture: Annotated[
        bool, typer.Option("--picture/--no-picture", help="Put a small training picture into the files.")
    ] = True,
    check: Annotated[
        bool,
        typer.Option("--check", help="Prove that the files load, before they get their names."),
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace files of the same name.")] = False,
) -> None:
    """Write a project's LoRAs for ComfyUI, A1111, Forge, InvokeAI or diffusers.

    A combined file has the rank of both LoRAs together and the merge weights folded in. It draws exactly what
    `combine` draws when the three prompts are one and there is no negative prompt. Otherwise the two differ,
    in the keys and values of cross-attention alone: `combine` shows each branch a prompt of its own, and
    other programs show both the same.
    """
    from unziplora_cli.workflows import export_lora

    session: Session = ctx.obj
    store = session.store()
    planned = export_lora.plan(
        store.open(project),
        export_lora.PARTS if part is Part.all else (part.value,),
        out,
        force=force,
        style_project=store.open(style_from) if style_from is not None else None,
        layout=to.value,
        dtype=dtype.value,
        rank=rank,
        picture=picture,
    )
    written = export_lora.export(planned, check=check)
    if planned[0][0].project.manifest.base.kind == "builtin":
        session.output.warning("These LoRAs are for the built-in base mini; other programs do not have it.")
    rows = [
        [
            each.path.name,
            each.part,
            each.layout,
            str(each.rank or ""),
            str(each.layers),
            format_size(each.bytes),
            _percent(each.rank_error),
        ]
        for each in written
    ]
    columns = ("file", "part", "format", "rank", "layers", "size", "rank error")
    session.output.result(
        {"files": [_exported(each) for each in written]},
        table=Table(columns, rows),
        text=f"Written to {written[0].path.parent.absolute()}",
    )
    for each in written:
        if each.checked is not None:
            session.output.message(_proof(each.checked))


def check(
    ctx: typer.Context,
    file: Annotated[
        Path, typer.Argument(help="A LoRA of SDXL's attention, from anywhere.", show_default=False)
    ],
    base: Annotated[str | None, BASE] = None,
) -> None:
    """Tell which programs load a LoRA file, and try it with diffusers.

    Every program's rules for keys are replayed on the file, and it is loaded into a diffusers pipeline with
    peft, where the update of every projection is compared with what the file holds.
    """
    from unziplora_cli.workflows.export_lora import check_file, lookup_base, require

    session: Session = ctx.obj
    checked = check_file(file, lookup_base(base) if base is not None else None)
    rows = [
        [
            each.program.name,
            each.program.version,
            f"{len(each.layers)} of {checked.layers}" if not each.refusal else "none",
            each.refusal or _left_out(len(each.left_out)),
        ]
        for each in checked.results
    ]
    require(checked)
    session.output.result(
        _checked(checked),
        table=Table(("program", "version", "layers", "what it does"), rows),
        text=_proof(checked),
    )


def import_(
    ctx: typer.Context,
    paths: Annotated[
        list[Path],
        typer.Argument(
            metavar="PATH...",
            help="A folder with a pair, a release's FOLDER/NAME, or the content LoRA and the style LoRA.",
            show_default=False,
        ),
    ],
    name: Annotated[
        str | None, typer.Option(help="Name of the project; left out: as the files say.", show_default=False)
    ] = None,
    subject: Annotated[
        str | None, typer.Option(help="What the content LoRA shows, in a word or two.", show_default=False)
    ] = None,
    style: Annotated[
        str | None, typer.Option(help="How the style LoRA draws, in a word or two.", show_default=False)
    ] = None,
    trigger: Annotated[
        str | None,
        typer.Option(help="Rare word that names this one subject; left out: as the files say, or monadikos."),
    ] = None,
    base: Annotated[str | None, BASE] = None,
    picture: Annotated[
        Path | None, typer.Option(help="The picture that they were learned from.", show_default=False)
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a project of the same name.")] = False,
) -> None:
    """Make a project of a pair of LoRAs: the authors' releases, exported files, or any two for SDXL.

    Merge weights that are not there are 1. Pickled ones (.pth) are read without running what is in them.
    """
    from unziplora_cli.config import Words
    from unziplora_cli.projects.names import check_name, slugify
    from unziplora_cli.workflows import export_lora, import_lora
    from unziplora_cli.workflows.train import check_images

    session: Session = ctx.obj
    store = session.store()
    if name is not None:
        check_name(name)
    if picture is not None:
        check_images([picture])
    pair = import_lora.find(paths)
    weights = import_lora.read(pair)
    words = Words(
        _word(session, subject or weights.told("subject", "content"), "subject", "What does it show"),
        _word(session, style or weights.told("style", "style"), "style", "How is it drawn"),
        trigger or weights.told("trigger", "content") or "monadikos",
    )
    record = (
        export_lora.lookup_base(base)
        if base is not None
        else export_lora.detect_base(weights.content.lora, weights.style.lora)
    )
    order = import_lora.ImportRequest(name or slugify(pair.name), weights, words, record, picture, force)
    made = import_lora.import_pair(order, store)
    for note in weights.notes:
        session.output.message(note)
    session.output.result(
        {
            "name": made.name,
            "folder": str(made.folder),
            "base": record.spec,
            "content": _loaded(pair.content, weights.content),
            "style": _loaded(pair.style, weights.style),
            "merge_weights": [str(path) for path in (pair.content_merge, pair.style_merge) if path],
        },
        text=f"{made.name}: {weights.content.rank} and {weights.style.rank} ranks, on {record.spec}.\n"
        f"Try it: unziplora combine {made.name}",
    )


def _word(session: Session, given: str | None, flag: str, question: str) -> str:
    """What the user or the files say; on a terminal it is asked for."""
    if given is not None:
        return given
    if session.output.json or not sys.stdin.isatty():
        raise UsageError(f"The files do not tell the {flag}.", hint=f"Add --{flag} WORD.")
    answer: str = typer.prompt(f"{question} ({flag})", err=True)
    return answer


def _percent(error: float | None) -> str:
    return "" if error is None else f"{100 * error:.2g} %"


def _left_out(keys: int) -> str:
    return "loads it whole" if not keys else f"leaves out {keys} keys without effect"


def _proof(checked: "FileCheck") -> str:
    readers = ", ".join(checked.readers) or "no program"
    text = f"{checked.path.name}: all {checked.layers} layers are read by {readers}"
    if checked.error is None:
        return f"{text}; diffusers does not read this format."
    exactly = f"with a relative error of at most {checked.error:.1e}" if checked.error else "exactly"
    return f"{text}; diffusers applies the update of all {checked.projections} projections {exactly}."


def _checked(checked: "FileCheck") -> dict[str, Any]:
    return {
        "file": str(checked.path),
        "format": checked.layout,
        "layers": checked.layers,
        "projections": checked.projections,
        "error": checked.error,
        "programs": [
            {
                "name": each.program.name,
                "version": each.program.version,
                "layers": 0 if each.refusal else len(each.layers),
                "left_out": len(each.left_out),
                "refusal": each.refusal,
            }
            for each in checked.results
        ],
    }


def _exported(each: "ExportedFile") -> dict[str, Any]:
    return {
        "file": str(each.path),
        "part": each.part,
        "format": each.layout,
        "rank": each.rank,
        "layers": each.layers,
        "bytes": each.bytes,
        "rank_error": each.rank_error,
        "check": _checked(each.checked) if each.checked else None,
    }


def _loaded(path: Path, loaded: Any) -> dict[str, Any]:
    return {"file": str(path), "format": loaded.layout, "rank": loaded.rank, "layers": len(loaded.lora)}
