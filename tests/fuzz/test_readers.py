"""Every reader gets random bytes, damaged files, wrong values, and every former finding."""

import contextlib
import io
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fuzz import targets
from tests.fuzz.seeds import seeds
from tests.fuzz.targets import TARGETS, attempt

FINDINGS = sorted(path for path in (Path(__file__).parent / "findings").iterdir() if path.suffix != ".md")
JSON = ("manifest", "config", "base-json", "training-record", "lock-note", "parameters")

HEAVY = ("import", "command-line", "parameters")
"""Targets that run whole commands, which take longer than a reader."""


def examples(target: str, count: int) -> settings:
    """Settings with the same inputs in every run; heavy targets get a tenth of `count`."""
    return settings(
        max_examples=count // 10 if target in HEAVY else count,
        derandomize=True,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    )


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@st.composite
def damaged(draw: st.DrawFn, seed: bytes) -> bytes:
    """A file with pieces removed, doubled or overwritten."""
    data = seed
    for _ in range(draw(st.integers(1, 3))):
        start = draw(st.integers(0, len(data)))
        end = min(len(data), start + draw(st.integers(0, 12)))
        filling = draw(st.binary(max_size=12) | st.just(data[start:end] * 2))
        data = data[:start] + filling + data[end:]
    return data[: draw(st.integers(0, 2 * len(seed) + 1))] if draw(st.booleans()) else data


@st.composite
def wrong_value(draw: st.DrawFn, seed: bytes) -> bytes:
    """A JSON object with one value replaced, or one key added or removed."""
    head, text = (seed[:1], seed[1:]) if seed[:1] != b"{" else (b"", seed)
    root: Any = json.loads(text)
    spot, key = root, draw(st.sampled_from(sorted(root)))
    while isinstance(spot[key], dict | list) and spot[key] and draw(st.booleans()):
        spot = spot[key]
        key = draw(st.sampled_from(sorted(spot) if isinstance(spot, dict) else range(len(spot))))
    match draw(st.sampled_from(("exchange", "exchange", "add", "drop"))):
        case "drop":
            del spot[key]
        case "add" if isinstance(spot, dict):
            spot[draw(st.text(max_size=5))] = draw(json_values)
        case _:
            spot[key] = draw(json_values)
    return head + json.dumps(root).encode()


def inputs(target: str) -> st.SearchStrategy[bytes]:
    """Inputs of a target: random bytes and nearly valid files."""
    valid = seeds(target)
    near = [damaged(seed) for seed in valid]
    if target in JSON:
        near += [wrong_value(seed) for seed in valid if b"{" in seed[:2]]
    return st.one_of(st.binary(max_size=64), *near)


def run(target: str, data: bytes, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(folder / "hub"))
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        attempt(target, data, folder)


@pytest.mark.parametrize("target", TARGETS)
def test_every_input_is_read_or_rejected(target, tmp_path, monkeypatch):
    given(inputs(target))(examples(target, 50)(lambda data: run(target, data, tmp_path, monkeypatch)))()


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS)
def test_many_inputs_are_read_or_rejected(target, tmp_path, monkeypatch):
    given(inputs(target))(examples(target, 2000)(lambda data: run(target, data, tmp_path, monkeypatch)))()


@pytest.mark.parametrize("target", TARGETS)
def test_valid_input_is_read(target, tmp_path, monkeypatch):
    """At least one seed of every target is accepted, so that damaged copies reach deep code."""
    read = []
    for seed in seeds(target):
        with contextlib.suppress(targets.UnziploraError):
            monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
            with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
                TARGETS[target](seed, tmp_path)
            read.append(seed)
    assert read or target in ("name", "hub-ref")


@pytest.mark.parametrize("finding", FINDINGS, ids=lambda path: path.name)
def test_former_findings_stay_fixed(finding, tmp_path, monkeypatch):
    run(finding.name.partition(".")[0], finding.read_bytes(), tmp_path, monkeypatch)


def test_writing_outside_the_folder_is_detected(tmp_path, monkeypatch):
    """The guard itself works; the tests above depend on it."""
    inner = tmp_path / "inner"
    inner.mkdir()
    (tmp_path / "e/f").mkdir(parents=True)
    for act in (
        lambda: (tmp_path / "a").write_bytes(b""),
        lambda: (tmp_path / "b").mkdir(),
        lambda: (inner / "../c").write_text(""),
        lambda: inner.rename(tmp_path / "d"),
        lambda: (tmp_path / "link").symlink_to(inner),
        lambda: shutil.rmtree(tmp_path / "e"),
    ):
        monkeypatch.setitem(TARGETS, "name", lambda data, folder, act=act: act())
        with pytest.raises(AssertionError, match="outside the folder"):
            run("name", b"", inner, monkeypatch)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["e", "inner"]
