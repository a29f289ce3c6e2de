"""Time of `unziplora --help` relative to the help of a bare Typer app; the best of many runs.

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
    """Seconds of the fastest run of each command; runs alternate, so that both see the same load."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    times: list[list[float]] = [[] for _ in commands]
    for _ in range(RUNS):
        for command, samples in zip(commands, times, strict=True):
            start = time.perf_counter()
            subprocess.run(command, check=True, capture_output=True, env=environment)
            samples.append(time.perf_counter() - start)
    return [min(samples) for samples in times]


def main() -> None:
    """Print both times and their ratio."""
    with tempfile.TemporaryDirectory() as folder:
        bare = Path(folder) / "bare.py"
        bare.write_text(BARE)
        program = "from unziplora_cli.__main__ import main; main()"
        ours, typer_only = best(
            [[sys.executable, "-c", program, "--help"], [sys.executable, str(bare), "--help"]]
        )
    print(f"{'unziplora --help':<20}{ours * 1000:8.0f} ms")
    print(f"{'bare Typer --help':<20}{typer_only * 1000:8.0f} ms")
    print(f"{'ratio':<20}{ours / typer_only:8.2f}")


if __name__ == "__main__":
    main()
