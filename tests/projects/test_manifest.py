import json
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import jsonschema
import pydantic
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter

from unziplora_cli import resources
from unziplora_cli.cli._errors import hint
from unziplora_cli.errors import ProjectError
from unziplora_cli.job import to_json
from unziplora_cli.projects import manifest
from unziplora_cli.projects.manifest import (
    MIGRATIONS,
    SCHEMA,
    BlockColumns,
    Evaluation,
    Manifest,
    ScoreRecord,
)

EVALUATION = Evaluation(
    created="2025-01-02T04:00:00Z",
    diagnosis="Content and style were separated.",
    advice=("Nothing to change.",),
    scores=(
        ScoreRecord("content kept", 0.9, 0.25, True, "Share of pictures that show the subject.", "share"),
        ScoreRecord("overlap", 0.1, None, False, "Cosine of the merge weights.", "likeness"),
    ),
    columns=(BlockColumns("down_blocks.1", 10, 12, 2, 64),),
)


@pytest.fixture
def valid(make_project) -> dict:
    return json.loads(to_json(make_project().manifest))


@pytest.fixture
def schema() -> dict:
    return json.loads(resources.template("manifest.schema.json").read_text(encoding="utf-8"))


def parse(text: bytes, path: Path) -> Manifest:
    return manifest.read_versioned(Manifest, text, path, SCHEMA, MIGRATIONS)


def bad(data: object, tmp_path) -> str:
    with pytest.raises(ProjectError) as caught:
        parse(json.dumps(data).encode(), tmp_path / "manifest.json")
    return caught.value.message


def test_what_was_written_is_read_back(make_project):
    project = make_project()
    assert manifest.read(project.folder) == project.manifest
    changed = replace(project.manifest, versions={"torch": "Füchse 🦊"}, seconds=3.0)
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
        ((5, -1, -1, 64), "columns[0].style: Input should be greater than or equal to 0"),
    ],
)
def test_columns_that_do_not_add_up_are_refused(make_project, tmp_path, counts, says):
    data = json.loads(to_json(make_project(evaluation=EVALUATION).manifest))
    data["evaluation"]["columns"][0].update(zip(("content", "style", "shared", "total"), counts, strict=True))
    assert says in bad(data, tmp_path)


@pytest.mark.skipif(
    tuple(map(int, pydantic.VERSION.split(".")[:2])) < (2, 14),
    reason="pydantic before 2.14 writes fewer keys into a schema",
)
def test_the_shipped_json_schema_is_that_of_the_reader(schema):
    """After a change, write the new schema: TypeAdapter(Manifest).json_schema(), indented by 2."""
    assert schema == TypeAdapter(Manifest).json_schema()


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("job.name", 3, "manifest.job.name: Input should be a valid string"),
        ("seconds", "fast", "manifest.seconds: Input should be a valid number"),
        ("seconds", float("nan"), "manifest.seconds: Input should be a finite number"),
        ("seconds", -1, "manifest.seconds: Input should be greater than or equal to 0"),
        ("steps_done", True, "manifest.steps_done: Input should be a valid integer"),
        ("job.created", "yesterday", "manifest.job.created: Value error"),
        ("job.created", "2025-01-02T03:04:05", "must be a time in UTC"),
        ("job.device", "\x1b[2J", "manifest.job.device: Value error, contains the control character '\\x1b'"),
        ("job.device", "a\udcffb", "manifest"),
        ("job.prompts.full", "a\x07", "The full prompt contains the control character '\\x07'"),
        ("job.images", [{"file": "a\0b"}], "manifest.job.images[0].file: Value error"),
        ("job.images", {}, "manifest.job.images: Input should be a valid array"),
        ("state", "half", "manifest.state: Input should be 'complete' or 'interrupted'"),
        ("artifacts", [{"role": "content"}], "manifest.artifacts[0].path: Field required"),
        ("job.settings.rank", [1], "manifest.job.settings.rank: Input should be a valid integer"),
        ("job.settings.rank", 0, "rank is 0, but must be from 1 to 1024"),
        (
            "job.settings.content_lr",
            float("inf"),
            "manifest.job.settings.content_lr: Input should be",
        ),
        ("job.settings.colour", 1, "manifest.job.settings.colour: Unexpected keyword argument"),
        ("job.words.subject", "", "The subject is empty"),
        ("colour", "red", "manifest.colour: Unexpected keyword argument"),
        ("evaluation", {"diagnosis": "good"}, "manifest.evaluation.created: Field required"),
        ("schema", "1", "no schema number"),
    ],
)
def test_a_wrong_value_is_named(valid, tmp_path, path, value, message):
    *parents, key = path.split(".")
    record = valid
    for parent in parents:
        record = record[parent]
    record[key] = value
    assert message in bad(valid, tmp_path)


def test_the_mark_of_an_editor_before_the_text_is_read_over(make_project):
    project = make_project("fox")
    file = project.folder / manifest.FILE_NAME
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())
    assert manifest.read(project.folder) == project.manifest


@pytest.mark.parametrize("path", ["../x", "/etc/passwd", "a/../../x", "", ".", "C:\\x", "a\\b"])
def test_a_path_that_leads_out_is_refused(valid, tmp_path, path):
    valid["artifacts"][0]["path"] = path
    assert "is outside the project" in bad(valid, tmp_path)


def test_two_artifacts_of_one_role_are_refused(valid, tmp_path):
    valid["artifacts"][1]["role"] = "content"
    assert "same role" in bad(valid, tmp_path)


def test_a_newer_schema_asks_for_an_upgrade(valid, tmp_path):
    with pytest.raises(ProjectError, match="schema 99") as caught:
        parse(json.dumps({**valid, "schema": 99}).encode(), tmp_path)
    assert "Upgrade unziplora" in hint(caught.value)


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
    return json.loads(to_json(replace(sample_manifest(folder), evaluation=EVALUATION)))
