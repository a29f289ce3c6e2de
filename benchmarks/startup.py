"""How long `unziplora --help` takes beside the help of a bare Typer app, best of many runs each.

python benchmarks/startup.py
"""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

RUNS = 40

BARE = '''
import typer

app = typer.Typer()


@app.command()
def first(name: str = "x"):
    """The first command."""


@app.command()
def second(name: str = "x"):
    """The second command."""


app()
'''


def best(commands: list[list[str]]) -> list[float]:
    """Seconds of the fastest run of each command; the runs take turns, so that both meet the same load."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    times: list[list[float]] = [[] for _ in commands]
    for _ in range(RUNS):
        for command, seen in zip(commands, times, strict=True):
            start = time.perf_counter()
            subprocess.run(command, check=True, capture_output=True, env=environment)
            seen.append(time.perf_counter() - start)
    return [min(seen) for seen in times]


def main() -> None:
    """Print both times and their ratio."""
    with tempfile.TemporaryDirectory() as folder:
        bare = Path(folder) / "bare.py"
        bare.write_text(BARE)
        program = "from unziplora_cli.__main__ import main; main()"
        ours, theirs = best(
            [[sys.executable, "-c", program, "--help"], [sys.executable, str(bare), "--help"]]
        )
    print(f"{'unziplora --help':<20}{ours * 1000:8.0f} ms")
    print(f"{'bare Typer --help':<20}{theirs * 1000:8.0f} ms")
    print(f"{'ratio':<20}{ours / theirs:8.2f}")


if __name__ == "__main__":
    main()
