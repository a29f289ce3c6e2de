import base64
import hashlib
import io
import json
from dataclasses import replace
from pathlib import Path

import pytest
import safetensors.torch
from PIL import Image
from safetensors import safe_open

from tests.adapters.loras import sdxl_lora
from unziplora_cli.adapters.lora_file import read_lora, write_lora
from unziplora_cli.adapters.metadata import file_metadata, project_metadata, thumbnail
from unziplora_cli.config import Prompts, Words
from unziplora_cli.job import BaseRecord, Job

BASE = BaseRecord("sdxl", "hub", "stabilityai/stable-diffusion-xl-base-1.0", "0" * 40, "0" * 40)
JOB = Job(
    name="füchslein",
    created="2026-01-02T03:04:05Z",
    base=BASE,
    words=Words("fox", "watercolor"),
    prompts=Prompts("a monadikos fox in watercolor style", "a monadikos fox", "a fox in watercolor style"),
)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A content LoRA with metadata."""
    folder = tmp_path_factory.mktemp("lora")
    path, image = folder / "a.safetensors", folder / "a.png"
    Image.linear_gradient("L").resize((300, 200)).save(image)
    write_lora(path, sdxl_lora(), file_metadata(JOB, "content", thumbnail(image)))
    return path


@pytest.fixture
def metadata(written: Path) -> dict[str, str]:
    with safe_open(written, "pt") as file:
        return file.metadata()


def test_modelspec_keys_are_present(metadata: dict[str, str]) -> None:
    """MUST and SHOULD of version 1.0.1, and those that listings show."""
    spec = {key.removeprefix("modelspec."): text for key, text in metadata.items()}
    assert spec["sai_model_spec"] == "1.0.1"
    assert spec["architecture"] == "stable-diffusion-xl-v1-base/lora"
    assert spec["implementation"] == "https://github.com/Stability-AI/generative-models"
    assert spec["title"] == "füchslein (content)"
    assert spec["date"] == JOB.created
    assert spec["resolution"] == "1024x1024"
    assert spec["trigger_phrase"] == "a monadikos fox"
    assert "a monadikos fox" in spec["usage_hint"]
    assert spec["description"]
    kind, _, data = spec["thumbnail"].partition(",")
    assert kind == "data:image/jpeg;base64"
    with Image.open(io.BytesIO(base64.b64decode(data))) as image:
        assert (image.format, image.size) == ("JPEG", (256, 256))
    assert len(data) < 20_000


def test_keys_that_other_programs_read_are_present(metadata: dict[str, str]) -> None:
    assert metadata["ss_base_model_version"].startswith("sdxl_")
    assert metadata["ss_network_module"] == "networks.lora"
    assert (metadata["ss_network_dim"], metadata["ss_network_alpha"]) == ("2", "2.0")
    assert metadata["ss_output_name"] == "füchslein-content"
    assert metadata["ss_sd_model_name"] == BASE.id
    assert json.loads(metadata["ss_tag_frequency"]) == {"füchslein": {"a monadikos fox": 1}}


def test_hashes_equal_those_of_sd_scripts(written: Path, metadata: dict[str, str]) -> None:
    """sd-scripts saves the tensors with the ss_ entries alone, and hashes that."""
    tensors = safetensors.torch.load_file(written)
    training = {key: text for key, text in metadata.items() if key.startswith("ss_")}
    file = io.BytesIO(safetensors.torch.save(tensors, training))
    length = int.from_bytes(file.read(8), "little")
    file.seek(8 + length)
    digest = hashlib.sha256(file.read()).hexdigest()
    file.seek(0x100000)
    legacy = hashlib.sha256(file.read(0x10000)).hexdigest()[:8]
    assert metadata["sshs_model_hash"] == digest
    assert metadata["modelspec.hash_sha256"] == f"0x{digest}"
    assert metadata["sshs_legacy_hash"] == legacy


def test_legacy_hash_depends_on_weights_behind_the_first_mebibyte(tmp_path: Path) -> None:
    hashes = []
    for seed in (1, 2):
        path = tmp_path / f"{seed}.safetensors"
        write_lora(path, sdxl_lora(seed, rank=24))
        assert path.stat().st_size > 0x110000
        hashes.append(read_lora(path).metadata["sshs_legacy_hash"])
    assert hashes[0] != hashes[1]


def test_equal_weights_give_equal_bytes_and_the_date_changes_no_hash(tmp_path: Path) -> None:
    lora = sdxl_lora()
    later = replace(JOB, created="2026-02-02T03:04:05Z")
    for name, job in (("a", JOB), ("b", JOB), ("c", later)):
        write_lora(tmp_path / name, lora, file_metadata(job, "content"))
    first, second, third = ((tmp_path / name).read_bytes() for name in "abc")
    assert first == second
    assert first.replace(JOB.created.encode(), later.created.encode()) == third
    kinds = ("sshs_model_hash", "sshs_legacy_hash", "modelspec.hash_sha256")
    notes = [read_lora(tmp_path / name).metadata for name in "ac"]
    assert [notes[0][kind] for kind in kinds] == [notes[1][kind] for kind in kinds]


def test_each_part_has_its_own_trigger() -> None:
    assert file_metadata(JOB, "style")["modelspec.trigger_phrase"] == "in watercolor style"
    assert file_metadata(JOB, "combined")["modelspec.trigger_phrase"] == JOB.prompts.full
    merge = project_metadata(JOB, None)["merge"]
    assert merge["unziplora.subject"] == "fox"
    assert not any(key.startswith(("modelspec.", "ss_")) for key in merge)


def test_built_in_base_is_not_called_sdxl() -> None:
    """A1111 relies on ss_base_model_version."""
    metadata = file_metadata(replace(JOB, base=BaseRecord("mini", "builtin", "mini")), "content")
    assert "ss_base_model_version" not in metadata
    assert metadata["modelspec.architecture"] == "unziplora-mini/lora"
