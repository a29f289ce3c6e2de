import os
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from unziplora_cli.adapters.lora_file import write_lora
from unziplora_cli.adapters.merge_weights import read_merge, read_pickled_merge, write_merge
from unziplora_cli.adapters.tensors import read_metadata
from unziplora_cli.errors import AdapterError
from unziplora_cli.method.lora import LoRAWeights

SAVED = Path(__file__).parents[1] / "golden/golden_a/saved"
Q = "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"
OUT = "mid_block.attentions.0.transformer_blocks.1.attn2.to_out.0"


def test_both_branches_round_trip(tmp_path: Path) -> None:
    content, style = {Q: torch.rand(4), OUT: torch.rand(6)}, {Q: torch.rand(4), OUT: torch.rand(6)}
    write_merge(tmp_path / "merge.safetensors", content, style, {"project": "fox"})
    loaded = read_merge(tmp_path / "merge.safetensors")
    for written, read in ((content, loaded.content), (style, loaded.style)):
        assert written.keys() == read.keys()
        assert all(torch.equal(written[name], read[name]) for name in written)
    assert read_metadata(tmp_path / "merge.safetensors")["project"] == "fox"


@pytest.mark.parametrize("branch", ["content", "style"])
def test_files_of_the_reference_implementation_are_read(branch: str) -> None:
    path = SAVED / f"m_merger_{branch}.pth"
    stored_branch, merge = read_pickled_merge(path)
    stored = torch.load(path, weights_only=True)
    assert stored_branch == branch
    assert len(merge) == len(stored) == 136
    assert torch.equal(merge[Q], stored[f"unet.{Q}.lora.merge_{branch}"])
    assert all(float(values.min()) >= 0 and float(values.max()) <= 1 for values in merge.values())


class Harmful:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return Path.touch, (Path("harmed"),)  # type: ignore[return-value]


def test_pickle_with_code_is_refused_and_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"unet.x.lora.merge_content": Harmful()}, "bad.pth")
    (tmp_path / "plain.pth").write_bytes(pickle.dumps(Harmful()))
    for name in ("bad.pth", "plain.pth"):
        with pytest.raises(AdapterError, match="more than tensors"):
            read_pickled_merge(tmp_path / name)
    assert not (tmp_path / "harmed").exists()


def test_other_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match="no file"):
        read_pickled_merge(tmp_path / "missing.pth")
    (tmp_path / "short.pth").write_bytes((SAVED / "m_merger_style.pth").read_bytes()[:900])
    with pytest.raises(AdapterError, match="damaged"):
        read_pickled_merge(tmp_path / "short.pth")
    torch.save({"weight": torch.ones(2)}, tmp_path / "other.pth")
    with pytest.raises(AdapterError, match="merge weights of one branch"):
        read_pickled_merge(tmp_path / "other.pth")
    write_lora(tmp_path / "lora.safetensors", {Q: LoRAWeights(torch.ones(2, 3), torch.ones(4, 2))})
    with pytest.raises(AdapterError, match="not a file of merge weights"):
        read_merge(tmp_path / "lora.safetensors")
    newer = {"unziplora_format": "unziplora-merge", "unziplora_version": "2"}
    save_file({f"{Q}.content": torch.ones(2)}, tmp_path / "newer.safetensors", metadata=newer)
    with pytest.raises(AdapterError, match="version 2"):
        read_merge(tmp_path / "newer.safetensors")


def test_new_file_follows_the_umask(tmp_path):
    expected = tmp_path / "plain"
    expected.touch()
    write_merge(tmp_path / "merge.safetensors", {"x": torch.ones(2)}, {"x": torch.ones(2)})
    assert (tmp_path / "merge.safetensors").stat().st_mode == expected.stat().st_mode


def test_equal_weights_give_equal_bytes(tmp_path):
    notes = {f"key {n}": "value" for n in range(12)}
    for name in ("one", "two"):
        write_merge(tmp_path / name, {"x": torch.ones(2)}, {"x": torch.ones(2)}, metadata=notes)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def pickled(path: Path, tensor: torch.Tensor) -> Path:
    torch.save({f"unet.{Q}.lora.merge_content": tensor}, path)
    return path


@pytest.mark.parametrize(
    "tensor",
    [
        torch.empty(4, device="meta"),
        torch.eye(4).to_sparse(),
        torch.ones(4).to_sparse(),
        torch.ones(1).expand(10**12),
        torch.ones(1).as_strided((10**12,), (0,)),
    ],
    ids=["meta", "sparse matrix", "sparse", "expanded", "stride of zero"],
)
def test_pickled_tensor_without_its_numbers_is_refused(tmp_path: Path, tensor: torch.Tensor) -> None:
    with pytest.raises(AdapterError, match=r"a\.pth"):
        read_pickled_merge(pickled(tmp_path / "a.pth", tensor))


@pytest.mark.parametrize("value", [1e38, 1.01, -0.1])
def test_merge_weight_outside_of_its_range_is_refused(tmp_path: Path, value: float) -> None:
    with pytest.raises(AdapterError, match="outside of 0 to 1"):
        read_pickled_merge(pickled(tmp_path / "a.pth", torch.tensor([0.5, value])))
    write_merge(tmp_path / "a.safetensors", {Q: torch.tensor([0.5, value])}, {})
    with pytest.raises(AdapterError, match="outside of 0 to 1"):
        read_merge(tmp_path / "a.safetensors")


def test_pipe_is_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.pth")
    with pytest.raises(AdapterError, match="not a regular file"):
        read_pickled_merge(tmp_path / "a.pth")
