"""eval as a user types it, on the tiny base, with and without models that look at pictures."""

import json

import pytest

from tests.cli import envelopes
from tests.evaluation.tiny_encoders import make_clip, make_dino, put_encoders_in_cache
from tests.hub_server import Hub, Repository
from unziplora_cli.evaluation import scorers
from unziplora_cli.evaluation.scorers import CLIP, DINO
from unziplora_cli.projects import manifest
from unziplora_cli.workflows.evaluate import download_encoders

QUICK = ("--count=1", "--draws=2", "--device=cpu")


def test_without_models_to_look_the_rest_is_told_and_how_to_get_them(unziplora, two_projects):
    completed = unziplora("eval", "fox", *QUICK)
    assert completed.code == 0
    assert "Nobody looked at drawn pictures." in completed.out or "Not well: " in completed.out
    assert "mid_block.attentions.0" in completed.out
    assert "one-file gap" in completed.out
    assert f"{DINO} and {CLIP}" in completed.message
    assert "unziplora eval fox --pull" in completed.message
    folder = two_projects / "projects/fox"
    written = manifest.read(folder).evaluation
    assert written.images == 0
    assert not (folder / "evaluation.png").exists()
    shown = unziplora("show", "fox").out
    assert "diagnosis" in shown
    assert "rebuilding error" in shown
    assert unziplora("verify", "fox").code == 0


def test_json_is_one_envelope_with_what_the_manifest_holds(unziplora, two_projects):
    completed = unziplora("eval", "fox", "--json", *QUICK)
    envelopes.check(completed.envelope)
    assert completed.envelope["command"] == "eval"
    result = completed.envelope["result"]
    stored = json.loads((two_projects / "projects/fox/manifest.json").read_text())
    assert result["evaluation"] == stored["evaluation"]
    assert result["sheet"] is None


def test_with_them_pictures_are_drawn_and_named(unziplora, two_projects, tmp_path):
    put_encoders_in_cache(tmp_path)
    completed = unziplora("eval", "fox", *QUICK, "--verbose")
    assert completed.code == 0, completed.err
    written = manifest.read(two_projects / "projects/fox").evaluation
    assert (written.images, written.scorer) == (8, "DINOv2 and CLIP")
    names = {score.name for score in written.scores}
    assert {"content kept", "style leaked into content", "style likeness", "prompt likeness"} <= names
    assert "Pictures of the content LoRA" in " ".join(completed.out.split())  # --verbose explains
    assert (two_projects / "projects/fox/evaluation.png").is_file()
    assert "evaluation.png" in completed.message


def test_pull_fetches_both_models_and_only_what_is_needed(unziplora, two_projects, tmp_path, hub: Hub):
    for id, make in ((DINO, make_dino), (CLIP, make_clip)):
        folder = make(tmp_path / id.replace("/", "-"))
        files = {path.name: path.read_bytes() for path in folder.iterdir()}
        hub.repositories[id] = Repository({**files, "pytorch_model.bin": b"pickled", "README.md": b"Hello"})
    completed = unziplora("eval", "fox", "--pull", *QUICK)
    assert completed.code == 0, completed.err
    assert scorers.missing() == ()
    assert f"Fetching {DINO}" in completed.message
    assert not hub.sent("pytorch_model.bin")
    asked = len(hub.requests)
    download_encoders(lambda id, bytes: pytest.fail(f"{id} is there already"))
    assert len(hub.requests) == asked


def test_nothing_is_fetched_offline(unziplora, two_projects):
    completed = unziplora("eval", "fox", "--pull", "--offline", *QUICK)
    assert completed.code == 4
    assert "needs the network" in completed.message


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["nofox"], 3, "There is no project"),
        (["fox", "--count=0"], 2, "count is 0"),
        (["fox", "--draws=many"], 2, "draws"),
        (["fox", "--base=nowhere"], 4, "no base"),
        ([], 2, "PROJECT"),
    ],
)
def test_bad_input_is_one_clear_error(unziplora, two_projects, arguments, code, says):
    completed = unziplora("eval", *arguments)
    assert completed.code == code
    assert says in completed.message
    assert completed.out == ""


def test_help_names_every_option(unziplora):
    shown = unziplora("eval", "--help").out
    for option in ("--count", "--draws", "--seed", "--device", "--pull", "--base"):
        assert option in shown
