"""Damaged, hostile and unsupported files: the error says what is wrong."""

import json
import os
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from unziplora_cli.adapters import tensors
from unziplora_cli.adapters.layouts import LAYOUTS
from unziplora_cli.adapters.lora_file import lora_in, read_lora, write_lora
from unziplora_cli.adapters.merge_weights import read_merge
from unziplora_cli.cli._errors import hint
from unziplora_cli.errors import AdapterError, UnziploraError
from unziplora_cli.files import open_safetensors
from unziplora_cli.method.lora import LoRAWeights
from unziplora_cli.sdxl.single_file import read_header

Q = "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"
MODULE = LAYOUTS["sd-scripts"].module(Q)
ONES = torch.ones(2, 3)


def good(path: Path) -> dict[str, torch.Tensor]:
    write_lora(path, {Q: LoRAWeights(torch.ones(2, 3), torch.ones(5, 2))}, dtype=torch.float32)
    return load_file(path)


def raw(path: Path, header: bytes, length: int | None = None, payload: bytes = b"") -> None:
    size = len(header) if length is None else length
    path.write_bytes(struct.pack("<Q", size) + header + payload)


def entry(dtype: str, shape: list[int], offsets: list[int]) -> bytes:
    return json.dumps(
        {f"{MODULE}.lora_down.weight": {"dtype": dtype, "shape": shape, "data_offsets": offsets}}
    ).encode()


HOSTILE: dict[str, Callable[[Path], object]] = {
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-9]),
    "empty": lambda path: path.write_bytes(b""),
    "text": lambda path: path.write_text("I am not a LoRA"),
    "pickle": lambda path: torch.save({"a": ONES}, path),
    "header longer than the file": lambda path: raw(path, b"{}", 2**40),
    "header of a petabyte": lambda path: raw(path, b"{}", 2**63 - 1),
    "header that is no JSON": lambda path: raw(path, b"{]      "),
    "nested header": lambda path: raw(path, b'{"a":' * 90_000),
    "offsets behind the end": lambda path: raw(path, entry("F32", [2, 3], [0, 24])),
    "offsets that do not fit": lambda path: raw(path, entry("F32", [2, 3], [0, 8]), payload=bytes(8)),
    "shape that overflows": lambda path: raw(path, entry("F32", [2**40, 2**40], [0, 8]), payload=bytes(8)),
    "negative shape": lambda path: raw(path, entry("F32", [-2, 3], [0, 8]), payload=bytes(8)),
    "unknown dtype": lambda path: raw(path, entry("F31", [2], [0, 8]), payload=bytes(8)),
}


@pytest.mark.parametrize("kind", HOSTILE)
@pytest.mark.parametrize("read", [read_lora, read_merge])
def test_damaged_or_hostile_file_is_refused(
    tmp_path: Path, kind: str, read: Callable[[Path], object]
) -> None:
    path = tmp_path / "a.safetensors"
    good(path)
    HOSTILE[kind](path)
    with pytest.raises(AdapterError, match="not a whole safetensors file") as error:
        read(path)
    assert hint(error.value)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"lora_up.weight": None}, "only one half of the LoRA"),
        ({"lora_down.weight": None, "lora_up.weight": None}, "only one half of the LoRA"),
        ({"lora_up.weight": torch.ones(5, 2, dtype=torch.int64)}, "holds int64 numbers"),
        ({"lora_up.weight": torch.ones(5, 2, dtype=torch.bool)}, "holds bool numbers"),
        ({"lora_up.weight": torch.ones(5, 2, dtype=torch.complex64)}, "holds complex64 numbers"),
        ({"lora_down.weight": torch.full((2, 3), torch.nan)}, "infinite or undefined"),
        ({"lora_up.weight": torch.full((5, 2), torch.inf)}, "infinite or undefined"),
        ({"lora_up.weight": torch.ones(5, 3)}, "do not match"),
        ({"lora_up.weight": torch.ones(5)}, "do not match"),
        ({"lora_up.weight": torch.ones(5, 0), "lora_down.weight": torch.ones(0, 3)}, "do not match"),
        ({"lora_up.weight": torch.full((5, 2), 1e38)}, "leaves only noise"),
        ({"alpha": torch.tensor(1e30)}, "leaves only noise"),
        ({"alpha": torch.tensor(torch.nan)}, "not one finite number"),
        ({"alpha": torch.ones(2)}, "not one finite number"),
    ],
)
def test_unusable_weight_is_named(tmp_path: Path, changes: dict[str, torch.Tensor | None], says: str) -> None:
    path = tmp_path / "a.safetensors"
    tensors = {**good(path), **{f"{MODULE}.{part}": tensor for part, tensor in changes.items()}}
    save_file({key: tensor for key, tensor in tensors.items() if tensor is not None}, path)
    with pytest.raises(AdapterError, match=says) as error:
        read_lora(path)
    assert hint(error.value)


@contextmanager
def no_more_open_files() -> Iterator[None]:
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    free = os.dup(0)
    os.close(free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize("read", [tensors.read_tensors, read_header])
def test_a_file_that_does_not_open_is_not_called_damaged(
    tmp_path: Path, read: Callable[[Path], object]
) -> None:
    """safetensors says "No such file" for any reason."""
    path = tmp_path / "a.safetensors"
    good(path)
    with no_more_open_files(), pytest.raises(UnziploraError) as error:
        read(path)
    assert error.value.message == f"Cannot read {path}: Too many open files."
    assert hint(error.value) == "Close other programs, or raise the limit of open files."


@pytest.mark.parametrize("number", [1, 2])
def test_a_file_that_opens_the_next_time_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """As after a network drive has lost the file's handle; torch opens the file once more."""
    path = tmp_path / "a.safetensors"
    good(path)
    errors = [FileNotFoundError("No such file"), RuntimeError("unable to open file (116)")][:number]

    def unstable(*args: Any, **options: Any) -> Any:
        if errors:
            raise errors.pop()
        return safe_open(*args, **options)

    monkeypatch.setattr("safetensors.safe_open", unstable)
    if number == 1:
        assert set(open_safetensors(path).keys()) == good(path).keys()
    else:
        with pytest.raises(FileNotFoundError, match="No such file"):
            open_safetensors(path)


def assert_usable_once_shortened(module: str, read: str, path: Path, metadata: dict[str, str]) -> None:
    """A function reads a file, shortened before a tensor is used: a mapped one ends the process by SIGBUS."""
    save_file({"x": torch.ones(1 << 18)}, path, metadata)
    program = (
        f"import os, sys; from pathlib import Path; from {module} import {read}\n"
        f"read, _ = {read}(Path(sys.argv[1])); os.truncate(sys.argv[1], 0); print(read['x'].sum())"
    )
    command = [sys.executable, "-c", program, str(path)]
    completed = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (completed.returncode, completed.stdout) == (0, f"tensor({1 << 18}.)\n"), completed.stderr


def test_a_file_that_is_shortened_while_its_tensors_are_used_costs_nothing(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    assert_usable_once_shortened("unziplora_cli.adapters.tensors", "read_tensors", path, {})


UNSUPPORTED = {
    "a LoHa": [f"{MODULE}.hada_w1_a", f"{MODULE}.hada_w1_b", f"{MODULE}.alpha"],
    "a LoKr": [f"{MODULE}.lokr_w1", f"{MODULE}.lokr_w2"],
    "a DoRA": [f"{MODULE}.lora_down.weight", f"{MODULE}.lora_up.weight", f"{MODULE}.dora_scale"],
    "an OFT or IA3": [f"{MODULE}.oft_blocks"],
    "a LyCORIS": [f"{MODULE}.diff"],
    "text encoders": [f"{MODULE}.lora_down.weight", "lora_te1_text_model_encoder_layers_0_mlp_fc1.alpha"],
    "for Stable Diffusion 1.5 or 2": [
        "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q.lora_down.weight",
        "lora_te_text_model_encoder_layers_0_mlp_fc1.lora_down.weight",
    ],
    "for FLUX": [
        "lora_unet_double_blocks_0_img_attn_proj.lora_down.weight",
        "lora_te1_text_model_encoder_layers_0_mlp_fc1.lora_down.weight",
    ],
}
MORE = [
    ("a GLoRA", f"{MODULE}.a1.weight"),
    ("for Wan", "diffusion_model.blocks.0.self_attn.q.lora_A.weight"),
    ("for Wan", "lora_unet_blocks_0_cross_attn_k.lora_down.weight"),
    ("for Z-Image", "diffusion_model.layers.0.attention.to_q.lora_A.weight"),
    ("for Lumina", "lora_unet_layers_0_attention_qkv.lora_down.weight"),
    ("for Lumina", "diffusion_model.noise_refiner.0.feed_forward.w1.lora_A.weight"),
    ("a textual inversion", "clip_g"),
    ("a whole checkpoint", "model.diffusion_model.input_blocks.0.0.weight"),
    ("for Stable Diffusion 1.5 or 2", "lora_unet_input_blocks_1_1_proj_in.lora_down.weight"),
    (
        "for Stable Diffusion 1.5 or 2",
        "unet.up_blocks.3.attentions.0.transformer_blocks.0.attn2.to_k.lora_A.weight",
    ),
    ("for FLUX", "transformer.single_transformer_blocks.0.attn.to_q.lora_A.weight"),
    ("for FLUX", "diffusion_model.double_blocks.0.img_attn.proj.lora_A.weight"),
    ("a diffusion transformer", "transformer.transformer_blocks.0.attn.to_q.lora_A.weight"),
    ("text encoders", "text_encoder.text_model.encoder.layers.0.self_attn.q_proj.lora_A.weight"),
]


@pytest.mark.parametrize(("kind", "keys"), [*UNSUPPORTED.items(), *((kind, [key]) for kind, key in MORE)])
def test_unsupported_adapter_is_named(tmp_path: Path, kind: str, keys: list[str]) -> None:
    path = tmp_path / "a.safetensors"
    save_file({key: torch.ones(2, 2) for key in keys}, path)
    with pytest.raises(AdapterError, match=kind) as error:
        read_lora(path)
    assert hint(error.value)


@pytest.mark.parametrize(
    "key",
    [
        "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_ff_net_2.lora_down.weight",
        "lora_unet_input_blocks_4_1_proj_in.lora_down.weight",
        "unet.down_blocks.1.attentions.0.proj_in.lora_A.weight",
        "diffusion_model.input_blocks.4.1.proj_in.lora_A.weight",
    ],
)
def test_layer_outside_of_attention_is_named(tmp_path: Path, key: str) -> None:
    path = tmp_path / "a.safetensors"
    save_file({key: ONES}, path)
    with pytest.raises(AdapterError, match="more than the attention of SDXL's U-Net") as error:
        read_lora(path)
    assert key in error.value.message


def test_two_names_for_one_layer_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    tensors = good(path)
    original = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_q"
    save_file({**tensors, f"{original}.lora_down.weight": ONES}, path)
    with pytest.raises(AdapterError, match="two tensors for"):
        read_lora(path)


def test_merge_weights_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "merge.safetensors"
    metadata = {"unziplora_format": "unziplora-merge", "unziplora_version": "1"}
    for values in (torch.tensor([torch.nan, 1.0]), torch.ones(2, dtype=torch.int32)):
        save_file({f"{Q}.content": values}, path, metadata=metadata)
        with pytest.raises(AdapterError, match="not finite numbers"):
            read_merge(path)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "a Git LFS pointer"),
        (b"\n<!DOCTYPE html><html></html>", "a web page"),
        (b"PK\x03\x04" + bytes(99), "a pickle of PyTorch"),
        (b"\x80\x02}q\x00." + bytes(99), "a pickle of PyTorch"),
        (b"GGUF" + bytes(99), "a GGUF file"),
        (b"\x89PNG\r\n\x1a\n" + bytes(99), "a file of another kind"),
        (b"", "it is empty"),
    ],
)
def test_file_of_another_kind_is_named(tmp_path: Path, content: bytes, says: str) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(content)
    with pytest.raises(AdapterError, match=says) as error:
        read_lora(path)
    assert "header" not in error.value.message
    assert hint(error.value)


def test_every_message_names_its_file(tmp_path: Path) -> None:
    path = tmp_path / "one.safetensors"
    save_file({f"{MODULE}.lora_down.weight": ONES}, path)
    with pytest.raises(AdapterError, match=r"one\.safetensors: .* one half"):
        read_lora(path)


def test_folder_stands_for_the_one_lora_in_it(tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match="no safetensors file in it"):
        lora_in(tmp_path)
    good(tmp_path / "a.SAFETENSORS")
    (tmp_path / "._a.safetensors").write_bytes(b"")
    assert lora_in(tmp_path) == tmp_path / "a.SAFETENSORS"
    good(tmp_path / "b.sft")
    with pytest.raises(AdapterError, match=r"2 safetensors files: a\.SAFETENSORS, b\.sft"):
        lora_in(tmp_path)
    good(tmp_path / "pytorch_lora_weights.safetensors")
    assert lora_in(tmp_path).name == "pytorch_lora_weights.safetensors"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="pipes")
def test_a_pipe_has_no_metadata(tmp_path):
    os.mkfifo(tmp_path / "a.safetensors")
    assert tensors.read_metadata(tmp_path / "a.safetensors") == {}


def test_a_number_format_without_a_type_in_torch_is_named(tmp_path):
    header = b'{"x": {"dtype": "F8_E8M0", "shape": [4], "data_offsets": [0, 4]}}'
    raw(tmp_path / "a.safetensors", header, payload=bytes(4))
    with pytest.raises(AdapterError, match="numbers in the format 'F8_E8M0'"):
        tensors.read_tensors(tmp_path / "a.safetensors")


@pytest.mark.skipif(sys.platform != "linux", reason="a file whose first byte cannot be read")
def test_a_disk_that_fails_in_the_middle_is_no_damage(tmp_path):
    (tmp_path / "a.safetensors").symlink_to("/proc/self/mem")
    with pytest.raises(AdapterError, match=r"Cannot read .*: Input/output error"):
        tensors.read_tensors(tmp_path / "a.safetensors")
    assert tensors.read_metadata(tmp_path / "a.safetensors") == {}
