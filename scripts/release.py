"""Check a release: build it, install it as users do, and run it.

    python -m scripts.release dist                      # `make release-check`; installs torch seven times
    python -m scripts.release dist --python 3.11 --installer uv --no-demo

The wheel is installed by uv, pipx and pip into fresh environments, on the lowest Python of this program and
on the newest that torch supports, and the sdist once. What this machine cannot check is named and skipped.
The installers' own variables apply, such as UV_TORCH_BACKEND=cpu, UV_CONSTRAINT and PIP_EXTRA_INDEX_URL.
"""

import argparse
import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import tomllib
import zipfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

CHECKOUT = Path(__file__).parents[1]
INSTALLERS = ("uv", "pipx", "pip")
LARGEST_WHEEL = 45_000_000


def main() -> int:
    parser = argparse.ArgumentParser(description="Build, install and run a release.")
    parser.add_argument("out", type=Path, help="folder of wheel and sdist")
    parser.add_argument(
        "--python", action="append", help="version, may be repeated (3.11 and torch's newest)"
    )
    parser.add_argument("--installer", action="append", choices=INSTALLERS)
    parser.add_argument("--no-demo", action="store_true", help="only start the installed program")
    options = parser.parse_args()

    wheel, sdist = build(options.out)
    print("\n".join([*sizes(wheel, sdist), "", *licences(wheel)]), flush=True)
    failures = (
        [] if wheel.stat().st_size <= LARGEST_WHEEL else [f"{wheel.name} exceeds {LARGEST_WHEEL:,} bytes"]
    )
    source: Path | None = sdist
    for version in options.python or pythons():
        python = find_python(version)
        if python is None:
            print(f"skipped  Python {version}: it is not on this machine", flush=True)
            continue
        for installer in options.installer or INSTALLERS:
            if shutil.which(installer, path=search_path()) is None:
                print(f"skipped  {installer}: it is not installed", flush=True)
                continue
            demo = not options.no_demo and installer == "uv"
            for package in (wheel, source) if source and installer == "uv" else (wheel,):
                label = f"{package.suffix[1:]}, {installer}, Python {version}"
                started = time.monotonic()
                problem, size = check(package, installer, python, demo=demo and package is wheel)
                seconds = time.monotonic() - started
                print(
                    f"{'FAILED ' if problem else 'ok     '}  {label}: {size / 1e6:.0f} MB, {seconds:.0f} s",
                    flush=True,
                )
                if problem:
                    print(problem, flush=True)
                    failures.append(label)
                if package is source:
                    source = None
    print("\n".join(["", "failed: " + ", ".join(failures) if failures else "This release can be published."]))
    return bool(failures)


def build(out: Path) -> tuple[Path, Path]:
    """The wheel and the sdist; the wheel is built from the sdist, which so has all that it needs."""
    run([sys.executable, "-m", "build", "--outdir", str(out), str(CHECKOUT)])
    newest = sorted(out.iterdir(), key=lambda path: path.stat().st_mtime)
    wheel = next(path for path in reversed(newest) if path.suffix == ".whl")
    return wheel, next(path for path in reversed(newest) if path.name.endswith(".tar.gz"))


def sizes(wheel: Path, sdist: Path) -> Iterator[str]:
    """The size of both files, and of what the wheel consists of."""
    with tarfile.open(sdist) as archive:
        count = len(archive.getnames())
    yield f"{sdist.name}: {sdist.stat().st_size / 1e6:.1f} MB, {count} files"
    yield f"{wheel.name}: {wheel.stat().st_size / 1e6:.1f} MB"
    kinds: Counter[str] = Counter()
    for entry in zipfile.ZipFile(wheel).infolist():
        kinds[Path(entry.filename).suffix or "other"] += entry.compress_size
    for kind, size in kinds.most_common(6):
        yield f"  {kind:14} {size / 1e6:8.2f} MB"


def licences(wheel: Path) -> Iterator[str]:
    """The licence of the wheel, and of every library that it needs."""
    with zipfile.ZipFile(wheel) as archive:
        metadata = next(name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        expression = re.search(r"^License-Expression: (.+)$", archive.read(metadata).decode(), re.M)
        texts = [name for name in archive.namelist() if "/licenses/" in name]
    if expression is None or not texts:
        raise SystemExit("The wheel does not name its licence, or does not contain its text.")
    yield f"Licence of the wheel, its code, templates and weights: {expression[1]} ({', '.join(texts)})"
    yield "Licences of the libraries that it needs, which are not in the wheel:"
    project = tomllib.loads((CHECKOUT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    for requirement in project["dependencies"]:
        name = re.split(r"[<>=~!\[; ]", requirement)[0]
        yield f"  {name:16} {licence_of(name)}"


def licence_of(distribution: str) -> str:
    metadata = importlib.metadata.metadata(distribution)
    if expression := metadata.get("License-Expression"):
        return str(expression)
    prefix = "License :: OSI Approved :: "
    names = [
        entry.removeprefix(prefix)
        for entry in metadata.get_all("Classifier") or ()
        if entry.startswith(prefix)
    ]
    return ", ".join(names) or (metadata.get("License") or "not declared").splitlines()[0]


def pythons() -> list[str]:
    """The lowest Python of this program, and the newest that the installed torch names."""
    project = tomllib.loads((CHECKOUT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lowest = project["requires-python"].removeprefix(">=")
    named = importlib.metadata.metadata("torch").get_all("Classifier") or []
    minors = [int(match[1]) for entry in named if (match := re.search(r":: Python :: 3\.(\d+)$", entry))]
    return list(dict.fromkeys([lowest, f"3.{max(minors)}"]))


def find_python(version: str) -> str | None:
    """An interpreter of this version on this machine, pyenv's and uv's included; nothing is downloaded."""
    candidates = [shutil.which(f"python{version}")]
    folders = [Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"]
    folders.append(Path(os.environ.get("XDG_DATA_HOME", Path.home() / ".local/share")) / "uv/python")
    candidates += [str(path) for folder in folders for path in folder.glob(f"*{version}.*/bin/python3")]
    ask = "import sys; print('{}.{}'.format(*sys.version_info))"
    for candidate in filter(None, candidates):  # a shim may stand for a Python that is not active
        answer = subprocess.run([candidate, "-c", ask], capture_output=True, text=True)
        if answer.stdout.strip() == version:
            return candidate
    return None


def search_path() -> str:
    """The folders of programs, this environment's first."""
    return os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])


def check(package: Path, installer: str, python: str, *, demo: bool) -> tuple[str, int]:
    """Install the package into a fresh environment and run it; returns what went wrong and the bytes used."""
    with tempfile.TemporaryDirectory(prefix="unziplora-release-") as name:
        folder = Path(name)
        environment = {
            **{key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "VIRTUAL_ENV")},
            "PATH": search_path(),
            "UV_TOOL_DIR": str(folder / "tools"),
            "UV_TOOL_BIN_DIR": str(folder / "bin"),
            "PIPX_HOME": str(folder / "pipx"),
            "PIPX_BIN_DIR": str(folder / "bin"),
            "PIPX_MAN_DIR": str(folder / "man"),
            "UNZIPLORA_HOME": str(folder / "home"),
            "HF_HOME": str(folder / "hub"),
        }
        file = str(package.resolve())
        commands = {
            "uv": [["uv", "tool", "install", "--python", python, file]],
            "pipx": [["pipx", "install", "--python", python, file]],
            "pip": [[python, "-m", "venv", "."], ["bin/pip", "install", file]],
        }[installer]
        try:
            for command in commands:
                run(command, folder, environment)
            size = sum(path.stat().st_size for path in folder.rglob("*") if not path.is_symlink())
            return start(str(folder / "bin" / "unziplora"), package, folder, environment, demo=demo), size
        except (subprocess.CalledProcessError, ValueError, KeyError) as error:
            return str(getattr(error, "output", "") or error)[-3000:], 0


def start(program: str, package: Path, folder: Path, environment: dict[str, str], *, demo: bool) -> str:
    """Run the installed program; returns what went wrong, if anything."""
    version = run([program, "--version"], folder, environment)
    if version.split()[-1] not in package.name:
        return f"the installed version is {version.strip()}"
    report = json.loads(run([program, "doctor", "--json"], folder, environment, may_fail=True))
    blocked = [check for check in report["result"]["checks"] if check["level"] == "problem"]
    if blocked:
        return json.dumps(blocked, indent=1)
    if demo:
        run([program, "demo", "--out", "sheet.png"], folder, environment)
        if not (folder / "sheet.png").is_file():
            return "the demo wrote no sheet"
    return ""


def run(
    command: list[str],
    folder: Path = CHECKOUT,
    environment: dict[str, str] | None = None,
    *,
    may_fail: bool = False,
) -> str:
    """The output of a program; raises CalledProcessError with everything it printed."""
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    if done.returncode and not may_fail:
        raise subprocess.CalledProcessError(done.returncode, command, done.stdout + done.stderr)
    return done.stdout


if __name__ == "__main__":
    sys.exit(main())
