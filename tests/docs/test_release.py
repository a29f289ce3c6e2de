"""The release check names licences, sizes and Pythons."""

import sys
import zipfile
from pathlib import Path

import pytest

from scripts import release


def make_wheel(path: Path, metadata: str, *names: str) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("unziplora-1.dist-info/METADATA", metadata)
        for name in names:
            archive.writestr(name, "x")
    return path


def test_the_licences_of_the_wheel_and_of_every_library_are_listed(tmp_path: Path) -> None:
    licence = "unziplora-1.dist-info/licenses/LICENSE"
    wheel = make_wheel(tmp_path / "a.whl", "License-Expression: Apache-2.0\n", licence)
    listed = "\n".join(release.licences(wheel))
    assert f"Apache-2.0 ({licence})" in listed
    for line in ("torch            Apache-2.0", "typer            MIT", "numpy            BSD-3-Clause"):
        assert line in listed
    assert "not declared" not in listed
    without_text = make_wheel(tmp_path / "b.whl", "License-Expression: Apache-2.0\n")
    with pytest.raises(SystemExit, match="licence"):
        list(release.licences(without_text))


def test_the_lowest_python_comes_first_and_an_unknown_one_is_not_found() -> None:
    lowest, *newer = release.pythons()
    assert lowest == "3.11"
    assert all(int(version.split(".")[1]) > 11 for version in newer)
    assert release.find_python("3.99") is None


def test_a_python_is_found_that_its_shim_hides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    version = "{}.{}".format(*sys.version_info)
    shim, real = tmp_path / "shims", tmp_path / f"versions/{version}.1/bin"
    for folder in (shim, real):
        folder.mkdir(parents=True)
    (shim / f"python{version}").write_text("#!/bin/sh\necho not active >&2\nexit 127\n")
    (shim / f"python{version}").chmod(0o755)
    (real / "python3").symlink_to(sys.executable)
    monkeypatch.setenv("PATH", f"{shim}:/bin:/usr/bin")
    monkeypatch.setenv("PYENV_ROOT", str(tmp_path))
    assert release.find_python(version) == str(real / "python3")


def test_a_failing_installer_is_reported_with_its_output(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "uv"
    program.write_text("#!/bin/sh\necho no such wheel >&2\nexit 3\n")
    program.chmod(0o755)
    monkeypatch.setattr(release, "search_path", lambda: str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    problem, _ = release.check(tmp_path / "a.whl", "uv", "python3", demo=False)
    assert "no such wheel" in problem
