import hashlib
import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from unziplora_cli import cache, paths
from unziplora_cli.cli.app import run
from unziplora_cli.diffusion import base
from unziplora_cli.errors import ModelError

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


@pytest.fixture
def hub(monkeypatch):
    """A hub of one repository that holds several variants of everything."""
    files = {
        **sdxl_files(),
        **sdxl_files(".safetensors"),
        **sdxl_files(".bin"),
        "README.md": b"",
        "vae_1_0/diffusion_pytorch_model.fp16.safetensors": b"x",
        "sd_xl_base_1.0.safetensors": b"x",
        "unet/model.onnx": b"x",
    }
    fetched = []

    def model_info(self, id, revision=None, files_metadata=False):
        siblings = [SimpleNamespace(rfilename=name, size=len(data)) for name, data in files.items()]
        return SimpleNamespace(sha=revision or REVISION, siblings=siblings)

    def snapshot_download(id, revision, allow_patterns, cache_dir):
        assert Path(cache_dir) == paths.hub_cache()
        assert os.environ["HF_HUB_OFFLINE"] == "0"
        fetched.extend(allow_patterns)
        return str(put_in_cache(id, revision, {name: files[name] for name in allow_patterns}))

    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setattr("huggingface_hub.HfApi.model_info", model_info)
    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    return SimpleNamespace(files=files, fetched=fetched)


def test_pull_fetches_one_variant_of_the_weights_and_nothing_else(hub, capsys):
    assert run(["models", "pull", "sdxl"]) == 0
    assert sorted(hub.fetched) == sorted(sdxl_files())
    found = {model.spec: model for model in cache.list_models()}
    assert (found["sdxl"].revision, found["sdxl"].problem) == (base.SDXL_REVISION, "")
    assert cache.VAE_FIX in capsys.readouterr().err


def test_without_fp16_the_plain_weights_are_taken_shards_and_index_too():
    index = "unet/diffusion_pytorch_model.safetensors.index.json"
    shards = [f"unet/diffusion_pytorch_model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    names = [*sdxl_files(".safetensors"), index, *shards]
    names.remove("unet/diffusion_pytorch_model.safetensors")
    assert set(names) == set(cache.choose_files(names))


def test_a_vae_of_its_own_is_one_configuration_and_one_file():
    names = [
        "config.json",
        "diffusion_pytorch_model.safetensors",
        "diffusion_pytorch_model.bin",
        "sdxl_vae.safetensors",
    ]
    assert cache.choose_files(names) == names[:2]


def test_nothing_is_pulled_offline(hub, monkeypatch, capsys):
    assert run(["--offline", "models", "pull", "sdxl"]) == 4
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert run(["models", "pull", "sdxl"]) == 4
    assert hub.fetched == []
    assert "needs the network" in capsys.readouterr().err


def test_a_full_disk_is_told_before_the_download(hub, monkeypatch, capsys):
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=10))
    assert run(["models", "pull", "sdxl"]) == 4
    assert hub.fetched == []
    assert "GB free" in capsys.readouterr().err


@pytest.mark.parametrize("spec", ["mini", "fox", "../x/y", "a/b/c", "/etc/passwd", ""])
def test_what_is_no_model_of_the_hub_is_refused(hub, spec, capsys):
    assert run(["models", "pull", spec]) == 4
    assert run(["models", "remove", spec, "--yes"]) == 4


def test_a_repository_without_safetensors_is_refused(hub, capsys):
    for name in [name for name in hub.files if name.endswith(".safetensors")]:
        del hub.files[name]
    assert run(["models", "pull", "owner/pickled"]) == 4
    assert "no safetensors" in capsys.readouterr().err


def test_every_error_of_the_hub_is_a_model_error(monkeypatch, capsys):
    def fail(self, *args, **kwargs):
        raise ConnectionError("Name or service not known")

    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setattr("huggingface_hub.HfApi.model_info", fail)
    assert run(["models", "pull", "owner/name"]) == 4
    err = capsys.readouterr().err
    assert "Cannot fetch owner/name" in err
    assert "Traceback" not in err


def test_models_of_other_programs_are_left_alone(capsys):
    put_in_cache(
        "owner/llm", REVISION, {"config.json": b'{"architectures": ["Llama"]}', "x.safetensors": b""}
    )
    put_in_cache("owner/odd", REVISION, {"config.json": b"[", "model_index.json": b"[]"})
    assert [model.spec for model in cache.list_models()] == ["mini"]
    assert run(["models", "remove", "owner/llm", "--yes"]) == 4
    assert "models list" in capsys.readouterr().err


def test_an_incomplete_model_says_what_it_lacks():
    files = sdxl_files()
    del files["unet/diffusion_pytorch_model.fp16.safetensors"]
    put_in_cache("owner/half", REVISION, files)
    (half,) = (model for model in cache.list_models() if model.spec == "owner/half")
    assert "unet" in half.problem


def test_verify_compares_each_file_with_its_hash(capsys):
    snapshot = put_in_cache("owner/name", REVISION, sdxl_files())
    assert run(["models", "verify", "owner/name"]) == 0
    weights = snapshot / "unet/diffusion_pytorch_model.fp16.safetensors"
    weights.resolve().write_bytes(b"other bytes")
    (snapshot / "vae/config.json").resolve().write_bytes((snapshot / "vae/config.json").read_bytes() + b" ")
    (snapshot / "tokenizer/merges.txt").resolve().unlink()
    assert run(["models", "verify", "owner/name"]) == 4
    said = " ".join(capsys.readouterr().err.split())
    assert "unet/diffusion_pytorch_model.fp16.safetensors is damaged" in said
    assert "vae/config.json is damaged" in said
    assert "tokenizer/merges.txt is missing" in said
    assert run(["models", "remove", "owner/name", "--yes"]) == 0
    assert not snapshot.exists()


def test_remove_frees_one_revision_and_leaves_the_rest(capsys):
    old = put_in_cache("owner/name", "b" * 40, sdxl_files())
    new = put_in_cache("owner/name", REVISION, sdxl_files(".safetensors"))
    assert run(["models", "remove", f"owner/name@{'b' * 40}", "--yes"]) == 0
    assert not old.exists()
    assert cache.find("owner/name").path == new
    with pytest.raises(ModelError, match="not on this disk"):
        cache.find(f"owner/name@{'b' * 40}")
    assert run(["models", "remove", "owner/name"]) == 2  # nobody there to answer
    assert new.exists()


def test_list_always_shows_the_built_in_base_and_how_to_get_sdxl(capsys):
    assert run(["models", "list"]) == 0
    out = capsys.readouterr().out
    assert "mini (built in)" in out
    assert "unziplora models pull sdxl" in out


def test_a_base_pulled_in_part_counts_as_present(monkeypatch):
    """The hub's library calls a snapshot incomplete when some of the repository was left out on purpose."""
    snapshot = put_in_cache(base.SDXL_ID, base.SDXL_REVISION, {"model_index.json": b"{}"})

    def incomplete(*arguments, **keywords):
        from huggingface_hub.errors import LocalEntryNotFoundError

        error = LocalEntryNotFoundError("README.md is missing")
        error.snapshot_path = str(snapshot)
        raise error

    monkeypatch.setattr("huggingface_hub.snapshot_download", incomplete)
    with pytest.raises(ModelError) as caught:
        base.resolve_base("sdxl", offline=True)
    assert not isinstance(caught.value, base.BaseNotCached)
    assert "is not a base" in caught.value.message
