import json
from contextlib import suppress
from dataclasses import replace

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unziplora_cli import resources
from unziplora_cli.cli._errors import hint
from unziplora_cli.errors import ProjectError
from unziplora_cli.projects import manifest
from unziplora_cli.projects.manifest import BlockColumns, Evaluation, Manifest, ScoreRecord, parse

EVALUATION = Evaluation(
    created="2025-01-02T04:00:00Z",
    diagnosis="Content and style came apart.",
    advice=("Nothing to mend.",),
    scores=(
        ScoreRecord("content kept", 0.9, 0.25, True, "Share of pictures that show the subject.", "share"),
        ScoreRecord("overlap", 0.1, None, False, "Cosine of the merge weights.", "likeness"),
    ),
    columns=(BlockColumns("down_blocks.1", 10, 12, 2, 64),),
)


@pytest.fixture
def valid(make_project) -> dict:
    return json.loads(json.dumps(make_project().manifest.to_json()))


@pytest.fixture
def schema() -> dict:
    return json.loads(resources.template("manifest.schema.json").read_text(encoding="utf-8"))


def bad(data: object, tmp_path) -> str:
    with pytest.raises(ProjectError) as caught:
        parse(json.dumps(data).encode(), tmp_path / "manifest.json")
    return caught.value.message


def test_what_was_written_is_read_back(make_project):
    project = make_project()
    assert manifest.read(project.folder) == project.manifest
    changed = replace(project.manifest, device="Füchse 🦊", seconds=3.0)
    manifest.write(project.folder, changed)
    assert manifest.read(project.folder) == changed


def test_the_shipped_json_schema_accepts_what_we_write(valid, schema):
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(valid, schema)


def test_an_evaluation_is_read_back_and_fits_the_schema(make_project, schema):
    project = make_project(evaluation=EVALUATION)
    assert manifest.read(project.folder).evaluation == EVALUATION
    jsonschema.validate(json.loads((project.folder / "manifest.json").read_text()), schema)


def test_a_manifest_from_before_evaluations_is_read(valid, tmp_path):
    del valid["evaluation"]
    assert parse(json.dumps(valid).encode(), tmp_path).evaluation is None


@pytest.mark.parametrize(
    ("counts", "says"),
    [
        ((5, 5, 6, 64), "add up"),
        ((65, 5, 1, 64), "add up"),
        ((5, -1, -1, 64), "add up"),
    ],
)
def test_columns_that_do_not_add_up_are_refused(make_project, tmp_path, counts, says):
    data = json.loads(json.dumps(make_project(evaluation=EVALUATION).manifest.to_json()))
    data["evaluation"]["columns"][0].update(zip(("content", "style", "shared", "total"), counts, strict=True))
    assert says in bad(data, tmp_path)


def test_the_shipped_json_schema_and_the_reader_agree_on_every_missing_key(valid, schema, tmp_path):
    for key in list(valid):
        without = {k: v for k, v in valid.items() if k != key}
        refused = not jsonschema.Draft202012Validator(schema).is_valid(without)
        try:
            parse(json.dumps(without).encode(), tmp_path)
        except ProjectError:
            assert refused, key
        else:
            assert not refused, key


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("name", 3, "manifest.name must be text"),
        ("seconds", "fast", "manifest.seconds must be a number"),
        ("seconds", float("nan"), "manifest.seconds must be a number"),
        ("seconds", -1, "seconds must not be negative"),
        ("seed", True, "manifest.seed must be a whole number"),
        ("created", "yesterday", "yesterday"),
        ("created", "2025-01-02T03:04:05", "UTC"),
        ("device", "\x1b[2J", "manifest.device holds '\\x1b', which is no text"),
        ("device", "a\udcffb", "manifest.device holds '\\udcff'"),
        ("source", [{"file": "a\0b"}], "manifest.source[0].file holds '\\x00'"),
        ("state", "half", "manifest.state must be one of complete, interrupted"),
        ("source", {}, "manifest.source must be a list"),
        ("artifacts", [{"role": "content"}], "manifest.artifacts[0] lacks the key 'path'"),
        ("training", {"rank": [1]}, "manifest.training.rank must be"),
        ("words", {"subject": "", "style": "ink"}, "subject is empty"),
        ("colour", "red", "manifest has an unknown key 'colour'"),
        ("evaluation", {"diagnosis": "good"}, "manifest.evaluation lacks the key 'created'"),
        ("schema", "1", "no schema number"),
    ],
)
def test_a_wrong_value_is_named(valid, schema, tmp_path, key, value, says):
    assert says in bad({**valid, key: value}, tmp_path)


@pytest.mark.parametrize("path", ["../x", "/etc/passwd", "a/../../x", "", ".", "C:\\x", "a\\b"])
def test_a_path_that_leads_out_is_refused(valid, tmp_path, path):
    valid["artifacts"][0]["path"] = path
    assert "leads out of the project" in bad(valid, tmp_path)


def test_two_artifacts_of_one_role_are_refused(valid, tmp_path):
    valid["artifacts"][1]["role"] = "content"
    assert "same role" in bad(valid, tmp_path)


def test_a_newer_schema_asks_for_an_upgrade(valid, tmp_path):
    with pytest.raises(ProjectError, match="schema 99") as caught:
        parse(json.dumps({**valid, "schema": 99}).encode(), tmp_path)
    assert "upgrade" in hint(caught.value)


def test_an_older_schema_climbs_the_ladder(valid, tmp_path, monkeypatch):
    def from_1(old: dict) -> dict:
        return {**old, "schema": 2, "device": "cuda"}

    monkeypatch.setattr(manifest, "SCHEMA", 2)
    monkeypatch.setitem(manifest.MIGRATIONS, 1, from_1)
    migrated = parse(json.dumps(valid).encode(), tmp_path)
    assert (migrated.schema, migrated.device) == (2, "cuda")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=8,
)


@given(json_values)
def test_any_json_is_a_manifest_or_a_clear_refusal(tmp_path_factory, value):
    with pytest.raises(ProjectError):
        parse(json.dumps(value).encode(), tmp_path_factory.getbasetemp())


@settings(max_examples=300)
@given(data=st.data())
def test_a_manifest_with_one_value_exchanged_is_read_or_refused(data, any_manifest):
    damaged = json.loads(json.dumps(any_manifest))
    spot, key = damaged, data.draw(st.sampled_from(sorted(damaged)))
    while isinstance(spot[key], dict | list) and spot[key] and data.draw(st.booleans()):
        spot = spot[key]
        key = data.draw(st.sampled_from(sorted(spot) if isinstance(spot, dict) else range(len(spot))))
    spot[key] = data.draw(json_values)
    with suppress(ProjectError):
        assert isinstance(parse(json.dumps(damaged).encode(), resources.template("x")), Manifest)


@given(st.binary(max_size=200))
def test_any_bytes_are_refused(content):
    with pytest.raises(ProjectError):
        parse(content, resources.template("x"))


@pytest.mark.parametrize("content", [b"[" * 100_000, b'{"schema": ' + b"9" * 5000 + b"}", b"\xff\xfe", b""])
def test_hostile_json_is_refused(content, tmp_path):
    with pytest.raises(ProjectError):
        parse(content, tmp_path)


@pytest.fixture(scope="module")
def any_manifest(tmp_path_factory, sample_manifest) -> dict:
    folder = tmp_path_factory.mktemp("sample")
    for file in ("source.png", "content.safetensors", "style.safetensors", "merge.safetensors"):
        (folder / file).write_bytes(b"")
    return replace(sample_manifest(folder), evaluation=EVALUATION).to_json()
