from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from unziplora_cli.cli._errors import hint
from unziplora_cli.errors import AdapterError, UsageError
from unziplora_cli.workflows.import_lora import RELEASED, AdapterPair, find_pair


def lora(path: Path, **metadata: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({"x": torch.zeros(1)}, path, metadata={key.replace("_", "."): v for key, v in metadata.items()})
    return path


def release(folder: Path, name: str, merges: bool = True) -> AdapterPair:
    content, style = (lora(folder / f"{name}_{branch}" / RELEASED) for branch in ("content", "style"))
    pickled = [folder / f"{name}_merger_{branch}.pth" for branch in ("content", "style")]
    for path in pickled if merges else ():
        path.write_bytes(b"")
    return AdapterPair(name, content, style, *(pickled if merges else (None, None)))


@pytest.mark.parametrize("given", ["", "cat", "cat_content", "cat_style"])
def test_release_is_found_by_any_of_its_paths(tmp_path: Path, given: str) -> None:
    pair = release(tmp_path, "cat")
    (tmp_path / "cat/checkpoint-500").mkdir(parents=True)  # what a training of the authors leaves as well
    assert find_pair([tmp_path / given]) == pair


def test_folder_with_two_releases_is_ambiguous(tmp_path: Path) -> None:
    first = release(tmp_path, "cat", merges=False)
    release(tmp_path, "dog")
    with pytest.raises(UsageError, match="2 pairs: cat, dog") as error:
        find_pair([tmp_path])
    assert "unziplora import" in hint(error.value)
    assert find_pair([tmp_path / "cat"]) == first


def test_incomplete_release_is_refused(tmp_path: Path) -> None:
    release(tmp_path, "cat").style.unlink()
    with pytest.raises(AdapterError, match=r"cat_style.*pytorch_lora_weights"):
        find_pair([tmp_path])


def test_folder_of_exported_files_is_one_pair(tmp_path: Path) -> None:
    """Sorted by metadata, not by name; the combined file is not part of it."""
    for file, part in (("a", "content"), ("b", "style"), ("d", "combined")):
        lora(tmp_path / f"{file}.safetensors", unziplora_part=part, unziplora_project="fox")
    merge = tmp_path / "c.safetensors"
    save_file({"x": torch.zeros(1)}, merge, metadata={"unziplora_format": "unziplora-merge"})
    content, style = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    assert find_pair([tmp_path]) == AdapterPair("fox", content, style, merge, merge)


@pytest.mark.parametrize("given", [["fox-content"], ["fox-style"], ["fox-content", "fox-style"]])
def test_files_of_the_pair_are_found_beside_a_given_one(tmp_path: Path, given: list[str]) -> None:
    content, style, merge = (
        lora(tmp_path / f"fox-{part}.safetensors") for part in ("content", "style", "merge")
    )
    lora(tmp_path / "rose-content.safetensors")
    pair = find_pair([tmp_path / f"{name}.safetensors" for name in given])
    assert (pair.content, pair.style, pair.content_merge, pair.style_merge) == (content, style, merge, merge)


def test_each_branch_takes_the_merge_weights_beside_it(tmp_path: Path) -> None:
    parts = {
        name: lora(tmp_path / name.split("-")[0] / f"{name}.safetensors")
        for name in ("fox-content", "fox-merge", "rose-style", "rose-merge")
    }
    pair = find_pair([parts["fox-content"], parts["rose-style"]])
    assert (pair.name, pair.content_merge, pair.style_merge) == (
        "fox",
        parts["fox-merge"],
        parts["rose-merge"],
    )


def test_two_files_of_unknown_role_are_content_and_style_in_that_order(tmp_path: Path) -> None:
    one, two = lora(tmp_path / "z.safetensors"), lora(tmp_path / "a.safetensors")
    assert find_pair([one, two]) == AdapterPair("z", one, two)
    style = lora(tmp_path / "my_style_v2.safetensors")
    assert find_pair([style, one]).content == one
    with pytest.raises(UsageError, match="not clear"):
        find_pair([tmp_path])


@pytest.mark.parametrize("names", [[], ["fox-style"], ["fox-content", "fox-combined"]])
def test_missing_branch_is_named(tmp_path: Path, names: list[str]) -> None:
    for name in names:
        lora(tmp_path / f"{name}.safetensors")
    with pytest.raises(AdapterError, match=r"There is no (content|style) LoRA") as error:
        find_pair([tmp_path])
    assert "unziplora import CONTENT STYLE" in hint(error.value)


def test_combined_file_cannot_be_taken_apart(tmp_path: Path) -> None:
    path = lora(tmp_path / "fox-combined.safetensors")
    for given in (path, tmp_path):
        with pytest.raises(AdapterError, match="cannot be taken apart"):
            find_pair([given])


def test_missing_path_is_named(tmp_path: Path) -> None:
    for paths in ([tmp_path / "gone"], [lora(tmp_path / "a.safetensors"), tmp_path / "gone"]):
        with pytest.raises(AdapterError, match="gone"):
            find_pair(paths)
