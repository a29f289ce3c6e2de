"""export, import and check: LoRA files of other programs."""

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from unziplora_cli.cli._opening import openable
from unziplora_cli.cli._options import BASE, PROJECT, project_names
from unziplora_cli.cli._output import Session, Table, format_size
from unziplora_cli.cli.describe import propose
from unziplora_cli.errors import Remedy, UsageError, count

if TYPE_CHECKING:
    from unziplora_cli.adapters.lora_file import LoadedLoRA
    from unziplora_cli.job import BaseRecord
    from unziplora_cli.workflows.export_lora import ExportedFile, FileCheck


@openable
def export(
    ctx: typer.Context,
    project: Annotated[str, PROJECT],
    part: Annotated[
        Literal["both", "content", "style", "combined", "all"],
        typer.Option(
            help="both as two files, content or style alone, or combined in one file; all adds their merge "
            "weights, which only unziplora reads."
        ),
    ] = "both",
    to: Annotated[
        Literal["sd-scripts", "kohya", "ldm", "diffusers", "peft"],
        typer.Option(
            help="sd-scripts (also called kohya or ldm) is read by every program; peft and diffusers (the "
            "older names) are for diffusers only."
        ),
    ] = "sd-scripts",
    dtype: Annotated[
        Literal["fp16", "bf16", "fp32"], typer.Option(help="Number format of the file.")
    ] = "fp16",
    rank: Annotated[
        int | None, typer.Option(min=1, help="Maximum rank per layer; prints the relative error.")
    ] = None,
    style_from: Annotated[
        str | None,
        typer.Option(
            "--with",
            metavar="PROJECT",
            help="With --part combined: use the style of this project.",
            autocompletion=project_names,
        ),
    ] = None,
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Folder, or for one part a .safetensors file.")
    ] = Path(),
    image: Annotated[
        bool, typer.Option("--image/--no-image", help="Store a thumbnail of the training image in the files.")
    ] = True,
    check: Annotated[
        bool, typer.Option("--check", help="Verify that the files load before saving them.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace existing files.")] = False,
) -> None:
    """Export a project's LoRAs for ComfyUI, A1111, Forge, InvokeAI or diffusers.

    A combined file has the sum of both ranks, with the merge weights multiplied in. It generates exactly what
    `combine` generates if all three prompts are the same and there is no negative prompt. Otherwise they
    differ in the keys and values of cross-attention: `combine` gives each branch its own prompt, other
    programs give both the same.
    """
    from unziplora_cli.workflows import export_lora

    session: Session = ctx.obj
    store = session.store()
    planned = export_lora.plan_export(
        store.open(project),
        export_lora.PARTS[part],
        out,
        force=force,
        style_project=store.open(style_from) if style_from is not None else None,
        layout="sd-scripts" if to in ("kohya", "ldm") else to,
        dtype=dtype,
        rank=rank,
        image=image,
    )
    exported = export_lora.export_files(planned, check=check, force=force)
    if planned[0][0].project.job.base.kind == "builtin":
        session.output.warning("These LoRAs are for the built-in base mini; other programs do not have it.")
    rows = [
        [
            file.path.name,
            file.part,
            file.layout,
            f"{file.rank or ''}" + (f", error {100 * file.rank_error:.2g} %" if file.rank_error else ""),
            str(file.layers),
            format_size(file.bytes),
        ]
        for file in exported
    ]
    session.output.result(
        {"files": [_exported_json(file) for file in exported]},
        table=Table(("file", "part", "format", "rank", "layers", "size"), rows),
        text=f"Written to {exported[0].path.parent.absolute()}",
        made=exported[0].path.parent,
    )
    for file in exported:
        if file.check is not None:
            for line in _check_summary(file.check).splitlines():
                session.output.message(line)


def check(
    ctx: typer.Context,
    file: Annotated[Path, typer.Argument(help="A LoRA of SDXL's attention layers, or its folder.")],
    base: Annotated[str | None, BASE] = None,
) -> None:
    """Check which programs load a LoRA file, and load it with diffusers.

    The loader rules of every program are applied to the file. Then a diffusers pipeline loads it, and the
    update of every projection is compared with the file. The result is a report: the exit code is 0 for every
    LoRA that can be read.
    """
    from unziplora_cli.workflows.export_lora import check_file, lookup_base

    session: Session = ctx.obj
    checked = check_file(file, lookup_base(base) if base is not None else None)
    rows = [
        [
            result.program.name,
            result.program.version,
            f"{result.layers} of {checked.layers}" if not result.refusal else "none",
            result.refusal
            or (
                f"ignores {count(result.ignored_keys, 'key')}" if result.ignored_keys else "loads every layer"
            ),
        ]
        for result in checked.results
    ]
    session.output.result(
        _check_json(checked),
        table=Table(("program", "version", "layers", "result"), rows),
        text=_check_summary(checked),
    )


@openable
def import_(
    ctx: typer.Context,
    paths: Annotated[
        list[Path],
        typer.Argument(
            metavar="PATH...",
            help="A folder with a pair, a release as FOLDER/NAME, or the content LoRA and the style LoRA.",
        ),
    ],
    name: Annotated[str | None, typer.Option(help="Name of the project; default: from the files.")] = None,
    subject: Annotated[
        str | None,
        typer.Option(help="Subject of the content LoRA, one or two words; default: from the files."),
    ] = None,
    style: Annotated[
        str | None, typer.Option(help="Style of the style LoRA, one or two words; default: from the files.")
    ] = None,
    trigger: Annotated[
        str | None, typer.Option(help="Rare word for this subject; default: from the files, else monadikos.")
    ] = None,
    base: Annotated[str | None, BASE] = None,
    image: Annotated[Path | None, typer.Option(help="The image that the LoRAs were trained on.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a project of the same name.")] = False,
) -> None:
    """Import a pair of LoRAs as a project.

    Reads releases of the paper's authors, exported files, or any two LoRAs for SDXL.

    Missing merge weights become 1. Pickled merge weights (.pth) are read without running code in them.
    """
    from unziplora_cli.workflows.import_lora import import_project

    session: Session = ctx.obj
    described = cache(lambda base: image and propose(session, [image], base)[0])

    def missing(word: str, base: "BaseRecord") -> str:
        """A word that no option and no file names: seen in the image; on a terminal, confirmed or typed."""
        guess: str = getattr(described(base), word, "")
        if session.output.can_ask:
            return session.output.ask(f"{word.capitalize()}, one or two words", guess or None)
        if not guess:
            raise UsageError(
                f"The files do not name the {word}.",
                Remedy("Name it in one or two words", settings={word: "WORD"}),
            )
        return guess

    words = {"subject": subject, "style": style, "trigger": trigger}
    made = import_project(
        session.store(), paths, words, missing, name=name, base=base, image=image, force=force
    )
    for note in made.replaced:
        session.output.warning(note)
    for note in made.pair.notes:
        session.output.message(note)
    project, sources, pair = made.project, made.sources, made.pair
    session.output.result(
        {
            "name": project.name,
            "folder": project.folder,
            "base": project.job.base.spec,
            "content": _lora_json(sources.content, pair.content),
            "style": _lora_json(sources.style, pair.style),
            "merge_weights": [path for path in (sources.content_merge, sources.style_merge) if path],
        },
        text=f"{project.name}: content rank {pair.content.rank}, style rank {pair.style.rank}, for "
        f"{project.job.base.spec}.\nNext: unziplora combine {project.name}",
        made=project.folder,
    )


def _all(number: int, noun: str) -> str:
    return f"its {noun} is" if number == 1 else f"all {number} {noun}s are"


def _check_summary(checked: "FileCheck") -> str:
    readers = ", ".join(checked.readers) or "no program"
    text = f"{checked.path.name} (for {checked.base}): {_all(checked.layers, 'layer')} loaded by {readers}"
    if checked.silent:
        text += f"; {checked.silent} of them have no effect"
    if checked.error is not None and not checked.problems:
        exactness = f"with a relative error of at most {checked.error:.1e}" if checked.error else "exactly"
        text += f"; diffusers applies the updates of all {checked.projections} projections {exactness}"
    lines = [text, *(problem[0].upper() + problem[1:] for problem in checked.problems)]
    if not checked.readers:
        lines.append("To use it elsewhere, import it as a project and export that.")
    return "\n".join(f"{line.removesuffix('.')}." for line in lines)


def _check_json(checked: "FileCheck") -> dict[str, Any]:
    return {
        "file": checked.path,
        "format": checked.layout,
        "base": checked.base,
        "layers": checked.layers,
        "silent_layers": checked.silent,
        "projections": checked.projections,
        "error": checked.error,
        "loaded_by": list(checked.readers),
        "problems": list(checked.problems),
        "programs": [
            {
                "name": result.program.name,
                "version": result.program.version,
                "layers": result.layers,
                "ignored_keys": result.ignored_keys,
                "refusal": result.refusal,
            }
            for result in checked.results
        ],
    }


def _exported_json(file: "ExportedFile") -> dict[str, Any]:
    entries = {name: getattr(file, name) for name in ("part", "rank", "layers", "bytes", "rank_error")}
    check = _check_json(file.check) if file.check else None
    return {"file": file.path, **entries, "format": file.layout, "check": check}


def _lora_json(path: Path, loaded: "LoadedLoRA") -> dict[str, Any]:
    return {"file": path, "format": loaded.layout, "rank": loaded.rank, "layers": len(loaded.lora)}
