import hashlib
import os
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from tests.sdxl.checkpoint import altered, write_checkpoint
from unziplora_cli import model_cache, paths
from unziplora_cli.__main__ import run
from unziplora_cli.cli._errors import hint
from unziplora_cli.errors import ModelError
from unziplora_cli.hub import choose_files
from unziplora_cli.sdxl import base

REVISION = "a" * 40
WEIGHTS = {
    "unet/diffusion_pytorch_model",
    "vae/diffusion_pytorch_model",
    "text_encoder/model",
    "text_encoder_2/model",
}


def sdxl_files(ending: str = ".fp16.safetensors") -> dict[str, bytes]:
    """The files of a repository of SDXL's layout, with a few bytes for each weight file."""
    folder = base.SDXL_CONFIG
    files = {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }
    for tokenizer in ("tokenizer", "tokenizer_2"):
        files |= {f"{tokenizer}/vocab.json": b"{}", f"{tokenizer}/merges.txt": b"#version: 0.2"}
    return files | {name + ending: f"weights of {name}".encode() for name in WEIGHTS}


def put_in_cache(id: str, revision: str, files: dict[str, bytes]) -> Path:
    """Lay files out as the hub library does: links to blobs that are named by their hashes."""
    root = paths.hub_cache() / f"models--{id.replace('/', '--')}"
    snapshot = root / "snapshots" / revision
    (root / "blobs").mkdir(parents=True, exist_ok=True)
    (root / "refs").mkdir(exist_ok=True)
    (root / "refs" / "main").write_text(revision)
    for name, data in files.items():
        large = name.endswith(".safetensors")
        header = b"" if large else b"blob %d\0" % len(data)
        blob = root / "blobs" / (hashlib.sha256 if large else hashlib.sha1)(header + data).hexdigest()
        blob.write_bytes(data)
        link = snapshot / name
        link.parent.mkdir(parents=True, exist_ok=True)
        link.unlink(missing_ok=True)
        link.symlink_to(os.path.relpath(blob, link.parent))
    return snapshot


def test_without_fp16_the_plain_weights_are_chosen_with_shards_and_index():
    index = "unet/diffusion_pytorch_model.safetensors.index.json"
    shards = [f"unet/diffusion_pytorch_model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    names = [*sdxl_files(".safetensors"), index, *shards]
    names.remove("unet/diffusion_pytorch_model.safetensors")
    assert set(names) == set(choose_files(names))


def test_a_separate_vae_is_one_configuration_and_one_weight_file():
    names = [
        "config.json",
        "diffusion_pytorch_model.safetensors",
        "diffusion_pytorch_model.bin",
        "sdxl_vae.safetensors",
    ]
    assert choose_files(names) == names[:2]


@pytest.mark.parametrize("spec", ["mini", "fox", "../x/y", "a/b/c", "/etc/passwd", ""])
def test_an_invalid_hub_id_is_refused(spec, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    assert run(["models", "pull", spec]) == 4
    assert run(["models", "remove", spec, "--yes"]) == 4


def test_models_of_other_programs_are_ignored(capsys):
    put_in_cache(
        "owner/llm", REVISION, {"config.json": b'{"architectures": ["Llama"]}', "x.safetensors": b""}
    )
    put_in_cache("owner/odd", REVISION, {"config.json": b"[", "model_index.json": b"[]"})
    assert [model.spec for model in model_cache.list_models()] == ["mini"]
    assert run(["models", "remove", "owner/llm", "--yes"]) == 4
    assert "models list" in capsys.readouterr().err


def test_an_incomplete_model_names_what_is_missing():
    files = sdxl_files()
    del files["unet/diffusion_pytorch_model.fp16.safetensors"]
    put_in_cache("owner/half", REVISION, files)
    (half,) = (model for model in model_cache.list_models() if model.spec == "owner/half")
    assert "unet" in half.problem


def test_verify_compares_each_file_with_its_hash(capsys):
    snapshot = put_in_cache("owner/name", REVISION, sdxl_files())
    assert run(["models", "verify", "owner/name"]) == 0
    weights = snapshot / "unet/diffusion_pytorch_model.fp16.safetensors"
    weights.resolve().write_bytes(b"other bytes")
    (snapshot / "vae/config.json").resolve().write_bytes((snapshot / "vae/config.json").read_bytes() + b" ")
    (snapshot / "tokenizer/merges.txt").resolve().unlink()
    assert run(["models", "verify", "owner/name"]) == 4
    message = " ".join(capsys.readouterr().err.split())
    assert "unet/diffusion_pytorch_model.fp16.safetensors is damaged" in message
    assert "vae/config.json is damaged" in message
    assert "tokenizer/merges.txt is missing" in message
    assert run(["models", "remove", "owner/name", "--yes"]) == 0
    assert not snapshot.exists()


def test_remove_frees_one_revision_and_leaves_the_rest(capsys):
    old = put_in_cache("owner/name", "b" * 40, sdxl_files())
    new = put_in_cache("owner/name", REVISION, sdxl_files(".safetensors"))
    assert run(["models", "remove", f"owner/name@{'b' * 40}", "--yes"]) == 0
    assert not old.exists()
    assert model_cache.find_cached("owner/name").path == new
    with pytest.raises(ModelError, match="not on this disk"):
        model_cache.find_cached(f"owner/name@{'b' * 40}")
    assert run(["models", "remove", "owner/name"]) == 2  # nobody there to answer
    assert new.exists()


def test_list_always_shows_the_built_in_base_and_how_to_get_sdxl(capsys):
    assert run(["models", "list"]) == 0
    out = capsys.readouterr().out
    assert "mini (built in)" in out
    assert "unziplora models pull sdxl" in out


def test_a_partly_downloaded_base_says_how_to_resume():
    put_in_cache(base.SDXL_ID, base.SDXL_REVISION, {"model_index.json": b"{}"})
    with pytest.raises(ModelError) as caught:
        base.resolve_base("sdxl", offline=True)
    assert not isinstance(caught.value, base.BaseNotCached)
    assert hint(caught.value) == "unziplora models pull sdxl"
    assert base.resolve_base(None, offline=True)[0].spec == "mini"


def test_a_damaged_commit_is_removed_without_the_others():
    """The library of the hub ignores models with missing files."""
    old = put_in_cache("owner/name", "b" * 40, {**sdxl_files(), "unet/config.json": b"older"})
    new = put_in_cache("owner/name", REVISION, sdxl_files())
    (old / "unet/config.json").resolve().unlink()
    result = model_cache.find_cached(f"owner/name@{'b' * 40}")
    assert model_cache.removable_bytes(result) == 0  # all that is left is the other commit's, too
    model_cache.remove(result)
    assert not old.exists()
    assert model_cache.verify("owner/name").problems == ()
    (new / "vae/config.json").resolve().unlink()
    model_cache.remove(model_cache.find_cached("owner/name"))
    assert not new.parent.parent.exists()


def test_equal_commits_of_two_models_are_distinguished():
    put_in_cache("owner/name", REVISION, sdxl_files())
    copy = put_in_cache("other/name", REVISION, sdxl_files())
    assert run(["models", "remove", "owner/name", "--yes"]) == 0
    assert copy.is_dir()


def test_verify_finds_truncated_weights_in_a_folder(tiny_base, tmp_path, capsys):
    folder = shutil.copytree(tiny_base, tmp_path / "copy")
    assert run(["models", "verify", str(folder)]) == 0
    assert run(["models", "verify", "mini"]) == 0
    weights = folder / "vae/diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])
    assert run(["models", "verify", str(folder)]) == 4
    assert "vae/diffusion_pytorch_model.safetensors is damaged" in " ".join(capsys.readouterr().err.split())


def test_blobs_shared_by_models_are_verified_by_the_name_of_their_link():
    """Newer libraries keep one copy of equal files of all models; a blob is then a link to it."""
    snapshot = put_in_cache("owner/name", REVISION, sdxl_files())
    weights = snapshot / "unet/diffusion_pytorch_model.fp16.safetensors"
    blob = weights.resolve()
    shared = paths.hub_cache() / "blobs/ab" / ("ab" * 32)
    shared.parent.mkdir(parents=True)
    blob.rename(shared)
    blob.symlink_to(os.path.relpath(shared, blob.parent))
    assert model_cache.verify("owner/name").problems == ()


def test_copies_without_links_count_as_unchecked(capsys):
    snapshot = put_in_cache("owner/name", REVISION, sdxl_files())
    for file in list(snapshot.rglob("*")):
        if file.is_symlink():
            data = file.read_bytes()
            file.unlink()
            file.write_bytes(data)
    result = model_cache.verify("owner/name")
    assert (result.checked, result.unchecked, result.problems) == (0, len(sdxl_files()), ())
    assert run(["models", "verify", "owner/name"]) == 0
    assert "no hash of the hub" in capsys.readouterr().out


@pytest.mark.parametrize("place", ["a user's file", "a blob of another model", "a user's folder"])
def test_remove_deletes_only_what_is_the_models(tmp_path, place):
    """A damaged snapshot may link to anywhere."""
    snapshot = put_in_cache("owner/name", REVISION, sdxl_files())
    thesis = tmp_path / "folder/thesis.txt"
    if place == "a blob of another model":
        thesis = put_in_cache("other/model", "b" * 40, sdxl_files()) / "unet/config.json"
        thesis = thesis.resolve()
    else:
        thesis.parent.mkdir()
        thesis.write_text("years of work")
    if place == "a user's folder":
        shutil.rmtree(snapshot / "unet")
        (snapshot / "unet").symlink_to(thesis.parent)
    else:
        (snapshot / "unet/config.json").unlink()
        (snapshot / "unet/config.json").symlink_to(thesis)
    before = thesis.read_bytes()
    assert run(["models", "remove", "owner/name", "--yes"]) == 0
    assert thesis.read_bytes() == before
    assert not snapshot.parent.parent.exists()


def test_a_linked_commit_is_unlinked(tmp_path):
    files = put_in_cache("owner/name", REVISION, sdxl_files())
    moved = shutil.copytree(files, tmp_path / "elsewhere")
    shutil.rmtree(files)
    files.symlink_to(moved)
    assert run(["models", "remove", "owner/name", "--yes"]) == 0
    assert (moved / "model_index.json").is_file()
    assert not files.is_symlink()


def test_files_of_the_user_have_a_path_and_are_verified(tiny_base, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(base, "SDXL_CONFIG", tiny_base)
    file = write_checkpoint(tiny_base, tmp_path / "photo.safetensors")
    vae = tmp_path / "vae.sft"
    save_file({key: tensor for key, tensor in load_file(file).items() if "first_stage" in key}, vae)
    monkeypatch.chdir(tmp_path)
    for path in (file, vae):
        capsys.readouterr()
        assert run(["models", "path", path.name]) == 0
        assert capsys.readouterr().out.strip() == str(path)
        assert run(["models", "verify", path.name]) == 0
    altered(file, file, "middle_block")
    assert run(["models", "verify", file.name]) == 4
    assert "lacks" in capsys.readouterr().err
    for command in ("remove", "pull"):
        assert run(["models", command, file.name]) == 4
        assert "your own file" in capsys.readouterr().err
    assert file.exists()
