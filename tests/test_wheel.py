"""The installed wheel contains everything that the program needs."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from unziplora_cli import resources

CHECKOUT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, CHECKOUT]
    subprocess.run(build, check=True, capture_output=True)
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def site(wheel, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    install = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--no-deps",
        "--no-index",
        "--quiet",
        "--target",
        folder,
        wheel,
    ]
    subprocess.run(install, check=True, capture_output=True)
    return folder


def run(site: Path, program: str) -> str:
    """Run a program in an empty folder, with the installed package first on the path."""
    program = f"import sys; sys.path.insert(0, {str(site)!r})\n{program}"
    result = subprocess.run([sys.executable, "-c", program], cwd=site.parent, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_every_template_opens_from_an_installed_wheel(site):
    program = (
        "from unziplora_cli import resources\n"
        "for path in sorted(p for p in resources.templates_dir().rglob('*') if p.is_file()):\n"
        "    path.read_text(encoding='utf-8')\n"
        "    print(path)"
    )
    opened = run(site, program).splitlines()
    installed = site / "unziplora_cli" / "templates"
    templates = CHECKOUT / "templates"
    expected = sorted(path for path in templates.rglob("*") if path.is_file())
    assert [Path(line).relative_to(installed) for line in opened] == [
        path.relative_to(templates) for path in expected
    ]


def test_presets_and_prompts_work_from_an_installed_wheel(site):
    program = (
        "from unziplora_cli.config import Words, resolve\n"
        "from unziplora_cli.resources import preset_names\n"
        "from unziplora_cli.prompts import make_prompts\n"
        "print([resolve(name, {}).rank for name in preset_names()], make_prompts(Words('fox', 'ink')).style)"
    )
    assert "a fox in ink style" in run(site, program)


def test_the_tested_versions_are_read_from_an_installed_wheel(site):
    program = (
        "from unziplora_cli.doctor.environment import read_pins\n"
        "from unziplora_cli.resources import constraints\n"
        "print(constraints('tested.txt'), read_pins(constraints('lowest.txt'))['torch'])"
    )
    printed = run(site, program)
    assert printed.startswith(str(site / "unziplora_cli"))
    assert printed.split()[-1].startswith("2.")


def test_the_installed_program_starts(site):
    program = (
        "from unziplora_cli.__main__ import run; raise SystemExit(run(['--home', 'h', 'list', '--json']))"
    )
    assert '"ok": true' in run(site, program)


def test_the_wheel_contains_every_data_file_and_nothing_beside_the_package(wheel):
    names = {Path(name) for name in zipfile.ZipFile(wheel).namelist()}
    assert {name.parts[0].split("-")[0] for name in names} == {"unziplora", "unziplora_cli"}
    data = [
        path for path in resources.mini_base().parent.rglob("*") if path.is_file() and path.suffix != ".pyc"
    ]
    data += list((CHECKOUT / "unziplora_cli").rglob("*.json"))
    for path in (*data, CHECKOUT / "unziplora_cli" / "py.typed"):
        assert path.relative_to(CHECKOUT) in names
    assert any(name.match("*/licenses/LICENSE") for name in names)


def test_the_wheel_stays_within_its_size(wheel):
    assert wheel.stat().st_size <= 45_000_000
