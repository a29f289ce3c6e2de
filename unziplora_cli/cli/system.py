"""doctor and demo: check this machine, and try everything in a few minutes."""

import shlex
import shutil
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from unziplora_cli import paths
from unziplora_cli.cli._errors import remedy_text
from unziplora_cli.cli._opening import openable
from unziplora_cli.cli._options import DEVICE
from unziplora_cli.cli._output import Session, Table, format_duration
from unziplora_cli.errors import Remedy, UsageError, count


def doctor(
    ctx: typer.Context,
    online: Annotated[
        bool, typer.Option("--online", help="Also check whether the model hub answers.")
    ] = False,
) -> None:
    """Check this machine, and print the commands that fix problems.

    Checks Python, torch and its GPU, memory, disks, libraries and base models.

    Exit code 1 if something blocks training or keeps it off the GPU.
    """
    from unziplora_cli.doctor import checks, environment

    session: Session = ctx.obj
    if online and session.offline:
        raise UsageError(
            "--online asks the model hub, but this run is offline.",
            Remedy("Remove --offline and unset HF_HUB_OFFLINE."),
        )
    session.output.message("Checking this machine; importing torch may take a while.")
    machine = environment.collect_environment(paths.home(session.home), online=online)
    results = checks.run_checks(machine)
    fixes = {check.name: [remedy_text(remedy) for remedy in check.remedies] for check in results}
    rows = [(check.name, check.level, check.message) for check in results]
    blocked = any(level == "problem" for _, level, _ in rows)
    session.output.result(
        {
            "blocked": blocked,
            "checks": [
                {"name": name, "level": level, "message": message, "fixes": fixes[name]}
                for name, level, message in rows
            ],
            "environment": asdict(machine),
        },
        table=Table(("check", "state", ""), rows),
        text="\n".join(
            [
                *("\n  ".join([f"{name}:", *lines]) for name, lines in fixes.items() if lines),
                "Something blocks training: see above." if blocked else "This machine can train.",
            ]
        ),
    )
    if blocked:
        raise typer.Exit(1)


@openable
def demo(
    ctx: typer.Context,
    out: Annotated[Path, typer.Option("--out", "-o", help="File of the sheet, or a folder for it.")] = Path(
        "unziplora-demo.png"
    ),
    force: Annotated[bool, typer.Option("--force", help="Replace an existing sheet.")] = False,
    device: Annotated[str, DEVICE] = "auto",
) -> None:
    """Show the whole workflow with two shipped images, offline.

    Trains on both with the built-in base, and shows on one sheet what was learned.

    Existing projects named demo-fox and demo-octopus are replaced.
    """
    from unziplora_cli.workflows.demo import demo

    session: Session = ctx.obj
    result = session.run("demo", demo(session.store(), out, device=device, force=force))
    first, second = result.projects
    # `make demo` runs the program of a virtual environment that is not active.
    started = [sys.executable, "-m", "unziplora_cli"] if sys.argv[0].endswith("__main__.py") else sys.argv[:1]
    program = "unziplora" if shutil.which("unziplora") else shlex.join(started)
    session.output.result(
        {
            "sheet": result.sheet,
            "projects": list(result.projects),
            "images": result.images,
            "seconds": round(result.seconds, 1),
        },
        text=(
            f"{result.sheet}: two trainings and {count(result.images, 'image')} "
            f"in {format_duration(result.seconds)}\n"
            f'Next: {program} combine {first} {second} --prompt "on a beach"'
        ),
        links=(result.sheet,),
        made=result.sheet,
    )
