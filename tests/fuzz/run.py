"""Coverage-guided fuzzing of one reader, or of all in turn, with atheris.

    pip install atheris
    python -m tests.fuzz.run --seconds 300 FOLDER              # every target, 300 s each
    python -m tests.fuzz.run --seconds 3600 FOLDER manifest

FOLDER keeps the corpus of every target, so that a later run continues, and in ``findings`` the shortest input
of every distinct failure. Add the input of a fixed finding to ``tests/fuzz/findings``.
"""

import argparse
import contextlib
import hashlib
import io
import os
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path

PACKAGE = "unziplora_cli"


def main() -> None:
    """Fuzz the targets of the command line, each in its own process."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz.run", description=__doc__.split("\n")[0])
    parser.add_argument("--seconds", type=int, default=300)
    parser.add_argument("folder", type=Path)
    parser.add_argument("targets", nargs="*")
    given = parser.parse_args()
    if len(given.targets) == 1:
        fuzz(given.targets[0], given.folder.absolute(), given.seconds)
        return
    from tests.fuzz.targets import TARGETS

    for target in given.targets or TARGETS:
        command = [sys.executable, "-m", "tests.fuzz.run", f"--seconds={given.seconds}", given.folder, target]
        subprocess.run(command, check=False)


def fuzz(target: str, folder: Path, seconds: int) -> None:
    """Fuzz one target for `seconds`; failures are saved and do not end the run."""
    import atheris

    with atheris.instrument_imports(include=[PACKAGE, "tomllib"]):
        from tests.fuzz import seeds, targets

    corpus, findings = folder / target, folder / "findings"
    for directory in (corpus, findings):
        directory.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(seeds.seeds(target)):
        (corpus / f"seed-{number}").write_bytes(seed)
    work = Path(tempfile.mkdtemp(prefix="unziplora-fuzz-"))
    os.environ["HF_HUB_CACHE"] = str(work / "hub")
    os.fsync = lambda descriptor: None  # no file has to survive a crash
    started, count = time.monotonic(), 0

    def one_input(data: bytes) -> None:
        nonlocal count
        count += 1
        try:
            with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
                targets.attempt(target, data, work)
        except Exception as error:
            _keep(findings, target, data, error)
        if time.monotonic() - started > seconds:
            print(f"{target}: {count} inputs in {time.monotonic() - started:.0f} s", flush=True)
            shutil.rmtree(work)
            os._exit(0)

    atheris.Setup([sys.argv[0], "-verbosity=0", "-max_len=8192", "-rss_limit_mb=0", str(corpus)], one_input)
    atheris.Fuzz()


def _keep(findings: Path, target: str, data: bytes, error: Exception) -> None:
    """Save the shortest input of every failure; failures differ by type and location in the package."""
    frames = traceback.extract_tb(error.__traceback__)
    places = [f"{frame.filename}:{frame.lineno}" for frame in frames if PACKAGE in frame.filename]
    where = places[-1] if places else f"{frames[-1].filename}:{frames[-1].lineno}"
    key = hashlib.sha256(f"{type(error).__name__} {where}".encode()).hexdigest()[:8]
    path = findings / f"{target}-{key}"
    if not path.exists() or len(data) < path.stat().st_size:
        path.write_bytes(data)
        path.with_suffix(".txt").write_text(f"{type(error).__name__}: {error!s:.300}\n{where}\n")


if __name__ == "__main__":
    main()
