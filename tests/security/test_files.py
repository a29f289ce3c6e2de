"""Files get the user's umask, and hostile weight files execute nothing."""

import os
import pickle
import stat
import sys
from pathlib import Path

import pytest
import torch

from unziplora_cli.adapters.lora_file import read_lora
from unziplora_cli.adapters.merge_weights import read_merge, read_pickled_merge
from unziplora_cli.errors import AdapterError
from unziplora_cli.projects.store import ProjectStore


@pytest.fixture
def umask():
    """Sets the umask for one test."""
    before = os.umask(0o022)
    yield os.umask
    os.umask(before)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no umask")
@pytest.mark.parametrize(("mask", "file", "folder"), [(0o022, 0o644, 0o755), (0o077, 0o600, 0o700)])
def test_files_are_created_with_the_users_umask(
    unziplora, photos, settings, isolated_home, umask, mask, file, folder
):
    umask(mask)
    words = ("--subject=fox", "--style=ink")
    saving = ("--save-every=3", "--validate-every=6", "--validation-images=1")
    completed = unziplora("train", photos / "fox.png", *words, *settings, *saving)
    assert completed.code == 0, completed.err
    assert unziplora("content", "fox", "--steps=1", "--device=cpu").code == 0
    modes = {path: stat.S_IMODE(path.lstat().st_mode) for path in isolated_home.rglob("*")}
    wrong = {
        str(path.relative_to(isolated_home)): oct(mode)
        for path, mode in modes.items()
        if path.suffix != ".lock" and mode != (folder if path.is_dir() else file)
    }
    assert wrong == {}
    assert {".safetensors", ".png", ".json", ".csv"} <= {path.suffix for path in modes}


class Bomb:
    """Creates a file when it is unpickled."""

    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self):
        return (Path.touch, (self.proof,))


@pytest.mark.parametrize("how", ["torch", "plain", "protocol 0", "inside a tensor file"])
def test_a_hostile_pickle_executes_nothing(tmp_path, how):
    proof, path = tmp_path / "proof", tmp_path / "merger_content.pth"
    honest = {"unet.a.lora.merge_content": torch.ones(3)}
    match how:
        case "torch":
            torch.save({**honest, "x": Bomb(proof)}, path)
        case "plain":
            path.write_bytes(pickle.dumps(Bomb(proof)))
        case "protocol 0":
            path.write_bytes(pickle.dumps({"x": Bomb(proof)}, protocol=0))
        case _:
            torch.save({"unet.a.lora.merge_content": Bomb(proof)}, path, _use_new_zipfile_serialization=False)
    with pytest.raises(AdapterError, match="cannot be read as merge weights"):
        read_pickled_merge(path)
    for read in (read_lora, read_merge):
        with pytest.raises(AdapterError):
            read(path)
    assert not proof.exists()
    pickle.loads(pickle.dumps(Bomb(proof)))
    assert proof.exists()  # the bomb works


def test_a_hostile_base_executes_nothing(tmp_path, assert_fails, photos):
    proof = tmp_path / "proof"
    base = tmp_path / "base.ckpt"
    torch.save({"state_dict": Bomb(proof)}, base)
    words = ("--subject=fox", "--style=ink")
    message = assert_fails(4, "train", photos / "fox.png", *words, f"--base={base}")
    assert "can run code" in message
    folder = tmp_path / "base"
    for part in ("unet", "vae", "text_encoder", "text_encoder_2"):
        (folder / part).mkdir(parents=True)
        torch.save(Bomb(proof), folder / part / "diffusion_pytorch_model.bin")
    assert "can run code" in assert_fails(4, "train", photos / "fox.png", *words, f"--base={folder}")
    assert not proof.exists()


def test_a_project_name_never_leaves_the_home(isolated_home, assert_fails):
    for name in ("../fox", "/etc/fox", "a/../../fox", "..", "fox\n", "C:fox", "~/fox"):
        for command in (("show", name), ("remove", name, "--yes"), ("rename", name, "elk"), ("replay", name)):
            assert "is not a valid project name" in assert_fails(2, *command)
    assert ProjectStore(isolated_home).names() == []
