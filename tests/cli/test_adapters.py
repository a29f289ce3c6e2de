"""export, import and check, as typed."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image, ImageChops
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from unziplora_cli.adapters.layouts import LAYOUTS
from unziplora_cli.adapters.lora_file import combine, read_lora
from unziplora_cli.adapters.merge_weights import read_merge
from unziplora_cli.errors import ProjectError
from unziplora_cli.method.inject import adapted_projections
from unziplora_cli.projects import manifest
from unziplora_cli.projects.store import ProjectStore
from unziplora_cli.sdxl.base import SDXL_CONFIG, read_json
from unziplora_cli.sdxl.meta import meta_unet
from unziplora_cli.workflows import export_lora

QUICK = ("--steps=2", "--seed=0", "--device=cpu")
WORDS = ("--subject=fox", "--style=ink")


@pytest.fixture
def exported(unziplora, two_projects, tmp_path) -> Path:
    """A folder with the three files of the project fox."""
    assert unziplora("export", "fox", "--part=all", "--out", tmp_path / "out").code == 0
    return tmp_path / "out"


def metadata(path: Path) -> dict[str, str]:
    with safe_open(path, "pt") as file:
        return dict(file.metadata())


def update(path: Path, layer: str) -> torch.Tensor:
    weights = read_lora(path).lora[layer]
    return weights.up @ weights.down


def test_export_writes_what_other_programs_load(unziplora, two_projects, tmp_path):
    folder = tmp_path / "ComfyUI/models/loras"
    unziplora("export", "fox", "--out", folder)
    assert sorted(path.name for path in folder.iterdir()) == [
        "fox-content.safetensors",
        "fox-style.safetensors",
    ]
    for path in folder.iterdir():
        modules = {key.rpartition(".lora_")[0] for key in load_file(path) if ".lora_" in key}
        assert len(modules) == len(read_lora(path).lora) > 0
        assert all(
            key.startswith(("lora_unet_input_", "lora_unet_middle_", "lora_unet_output_")) for key in modules
        )


def test_merge_weights_are_exported_on_request(unziplora, two_projects, tmp_path):
    options = ("--part=all", "--out", tmp_path / "loras", "--check", "--json")
    files = unziplora("export", "fox", *options).envelope["result"]["files"]
    names = ["fox-content.safetensors", "fox-style.safetensors", "fox-merge.safetensors"]
    assert [Path(file["file"]).name for file in files] == names
    assert sorted(path.name for path in (tmp_path / "loras").iterdir()) == sorted(names)
    content, _, merge = files
    assert merge["check"] is None
    assert content["check"]["projections"] == 136
    assert content["check"]["error"] < 1e-3


@pytest.mark.parametrize("to", ["sd-scripts", "kohya", "ldm", "diffusers", "peft"])
@pytest.mark.parametrize("dtype", ["fp16", "bf16", "fp32"])
def test_every_format_and_dtype_holds_the_same_updates(unziplora, two_projects, tmp_path, to, dtype):
    path = tmp_path / "a.safetensors"
    options = (f"--to={to}", f"--dtype={dtype}", "--part=style", "--out", path)
    assert unziplora("export", "fox", *options).code == 0
    loaded, original = read_lora(path), read_lora(two_projects / "projects/fox/style.safetensors")
    layout = "sd-scripts" if to in ("kohya", "ldm") else to
    assert (loaded.layout, loaded.dtype) == (layout, dtype)
    assert loaded.lora.keys() == original.lora.keys()
    limit = 1e-2 if dtype == "bf16" else 1e-3
    for layer, weights in original.lora.items():
        expected = weights.up @ weights.down
        actual = loaded.lora[layer].up @ loaded.lora[layer].down
        assert float((actual - expected).norm() / expected.norm()) < limit


def test_combined_file_of_two_projects_names_both(unziplora, two_projects, tmp_path):
    options = ("--part=combined", "--with=rose", "--dtype=fp32", "--check", "--out", tmp_path)
    completed = unziplora("export", "fox", *options, "--json")
    (file,) = completed.envelope["result"]["files"]
    assert Path(file["file"]) == tmp_path / "fox-x-rose-combined.safetensors"
    assert file["rank"] == 8
    assert file["check"]["error"] < 1e-5
    fox, rose = (two_projects / "projects" / name for name in ("fox", "rose"))
    expected = combine(
        read_lora(fox / "content.safetensors").lora,
        read_lora(rose / "style.safetensors").lora,
        read_merge(fox / "merge.safetensors").content,
        read_merge(rose / "merge.safetensors").style,
    )
    layer = next(iter(expected))
    torch.testing.assert_close(update(Path(file["file"]), layer), expected[layer].up @ expected[layer].down)
    stored = metadata(Path(file["file"]))
    assert stored["modelspec.merged_from"] == "fox (content), rose (style)"
    assert stored["modelspec.trigger_phrase"] == "a monadikos fox in sketch style"


def test_reduced_rank_reports_its_error(unziplora, two_projects, tmp_path):
    options = ("--part=content", "--rank=1", "--dtype=fp32", "--check", "--out", tmp_path)
    completed = unziplora("export", "fox", *options)
    assert "%" in completed.out
    path = tmp_path / "fox-content.safetensors"
    assert read_lora(path).rank == 1
    original = two_projects / "projects/fox/content.safetensors"
    exact, near = read_lora(original).lora, read_lora(path).lora
    updates = [(exact[x].up @ exact[x].down, near[x].up @ near[x].down) for x in exact]
    lost = sum(float((one - other).square().sum()) for one, other in updates)
    whole = sum(float(one.square().sum()) for one, _ in updates)
    completed = unziplora("export", "fox", *options, "--force", "--json")
    rank_error = completed.envelope["result"]["files"][0]["rank_error"]
    assert rank_error == pytest.approx((lost / whole) ** 0.5, rel=1e-3)


def test_thumbnail_can_be_omitted(unziplora, exported, tmp_path):
    path = tmp_path / "a.safetensors"
    assert "modelspec.thumbnail" in metadata(exported / "fox-content.safetensors")
    assert unziplora("export", "fox", "--part=content", "--no-image", "--out", path).code == 0
    assert "modelspec.thumbnail" not in metadata(path)


@pytest.mark.parametrize(
    ("code", "options", "says"),
    [
        (3, ["nobody"], "There is no project"),
        (2, ["fox", "--part=neither"], "--part"),
        (2, ["fox", "--to=onnx"], "--to"),
        (2, ["fox", "--rank=0"], "--rank"),
        (2, ["fox", "--with=rose"], "--part combined"),
        (3, ["fox", "--part=combined", "--with=nobody"], "There is no project"),
        (2, ["fox", "--out=fox.safetensors"], "is one file, but there are 2"),
        (3, ["fox", "--out={taken}"], "already exists"),
        (3, ["fox", "--out={file}/below"], "is not a folder"),
    ],
)
def test_refused_export_writes_nothing(assert_fails, exported, tmp_path, code, options, says):
    (tmp_path / "mine.txt").write_text("mine")
    before = sorted(tmp_path.rglob("*"))
    places = {"taken": str(exported), "file": str(tmp_path / "mine.txt")}
    assert says in assert_fails(code, "export", *(option.format(**places) for option in options))
    assert sorted(tmp_path.rglob("*")) == before


def test_file_that_appears_during_an_export_is_not_replaced(two_projects, tmp_path):
    project = ProjectStore(two_projects).open("fox")
    planned = export_lora.plan_export(project, export_lora.PARTS["all"], tmp_path, force=False)
    mine = tmp_path / "fox-style.safetensors"
    mine.write_bytes(b"mine")
    with pytest.raises(ProjectError, match="already exists"):
        export_lora.export_files(planned)
    assert list(tmp_path.iterdir()) == [mine]
    assert mine.read_bytes() == b"mine"


def test_projects_of_different_bases_are_not_combined(assert_fails, two_projects, tmp_path):
    path = two_projects / "projects/rose/manifest.json"
    stored = json.loads(path.read_text())
    stored["job"]["base"] = {"spec": "sdxl", "kind": "hub", "id": "owner/sdxl", "revision": "1", "hash": "1"}
    path.write_text(json.dumps(stored))
    for command in (
        ["export", "fox", "--part=combined", "--with=rose", "--out", tmp_path],
        ["combine", "fox", "rose"],
        ["cross", "fox", "rose"],
    ):
        assert "LoRAs of different bases cannot be combined" in assert_fails(3, *command)
    assert list(tmp_path.iterdir()) == []


def test_damaged_project_exports_nothing(assert_fails, two_projects, tmp_path):
    path = two_projects / "projects/fox/style.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    assert "is not a whole safetensors file" in assert_fails(6, "export", "fox", "--out", tmp_path / "a/b")
    assert list(tmp_path.iterdir()) == []


def test_file_that_fails_its_check_is_not_written(assert_fails, two_projects, tmp_path, monkeypatch):
    from unziplora_cli.sdxl import meta

    monkeypatch.setattr(meta, "_relative_error", lambda *_: 0.5)
    message = assert_fails(6, "export", "fox", "--part=content", "--check", "--out", tmp_path)
    assert "relative error of 5.0e-01" in message
    assert list(tmp_path.iterdir()) == []


def test_exported_project_is_imported_unchanged(unziplora, exported, tiny_base, isolated_home):
    completed = unziplora("import", exported, "--name=back", f"--base={tiny_base}", "--json")
    assert completed.envelope["result"]["name"] == "back"
    before, after = (isolated_home / "projects" / name for name in ("fox", "back"))
    for branch in ("content", "style"):
        one, other = (load_file(folder / f"{branch}.safetensors") for folder in (before, after))
        assert one.keys() == other.keys()
        assert all(torch.equal(one[key], other[key]) for key in one)
    one, other = (manifest.read(folder) for folder in (before, after))
    assert (one.job.words, one.job.prompts, one.job.base.hash) == (
        other.job.words,
        other.job.prompts,
        other.job.base.hash,
    )
    images = []
    for name in ("fox", "back"):
        (file,) = unziplora("combine", name, *QUICK, "--json").envelope["result"]["images"]
        images.append(Image.open(file))
    assert ImageChops.difference(*images).getbbox() is None


def test_what_was_made_with_a_replaced_project_is_kept_and_named(
    unziplora, exported, tiny_base, isolated_home
):
    made = isolated_home / "projects/fox/images/content-001.png"
    made.parent.mkdir()
    made.write_bytes(b"generated")
    replaced = unziplora("import", exported, "--name=fox", f"--base={tiny_base}", "--force")
    assert replaced.code == 0
    kept = isolated_home / "projects/fox/former-001"
    assert (kept / "images/content-001.png").read_bytes() == b"generated"
    assert f"1 file that was generated with the replaced project: kept in {kept}" in replaced.message
    again = unziplora("import", exported, "--name=fox", f"--base={tiny_base}", "--force")
    assert "replaced project" not in again.message  # nothing was made with it


def test_imported_project_works_with_every_command(unziplora, exported, tiny_base, photos, tmp_path):
    content = exported / "fox-content.safetensors"
    style = exported.parent / "style-of-rose.safetensors"
    assert unziplora("export", "rose", "--part=style", "--to=peft", "--out", style).code == 0
    for name, more in (("plain", []), ("with-image", ["--image", photos / "fox.png"])):
        completed = unziplora("import", content, style, f"--name={name}", f"--base={tiny_base}", *more)
        assert completed.code == 0
        assert "There are no merge weights for the style: all are 1." in completed.message
        assert unziplora("verify", name).code == 0
        assert unziplora("show", name, "--json").envelope["result"]["manifest"]["job"]["settings"] is None
        for command in ("content", "style", "combine"):
            assert unziplora(command, name, *QUICK).code == 0
        assert unziplora("export", name, "--part=combined", "--check", "--out", tmp_path / name).code == 0
    assert "imported" in unziplora("list").out
    assert "a monadikos fox in sketch style" in unziplora("show", "plain").out
    assert unziplora("cross", "plain", "with-image", *QUICK).code == 0


@pytest.fixture
def released(two_projects, tmp_path) -> Path:
    """The project fox in the files of the authors' releases."""
    project, folder = two_projects / "projects/fox", tmp_path / "released"
    both = read_merge(project / "merge.safetensors")
    for branch, merge in (("content", both.content), ("style", both.style)):
        tensors = {}
        for layer, weights in read_lora(project / f"{branch}.safetensors").lora.items():
            tensors[f"unet.unet.{layer}.lora.down.weight"] = weights.down
            tensors[f"unet.unet.{layer}.lora.up.weight"] = weights.up
        (folder / f"cat_{branch}").mkdir(parents=True)
        save_file(tensors, folder / f"cat_{branch}/pytorch_lora_weights.safetensors")
        stored = {
            f"unet.{layer}.lora.merge_{branch}": torch.nn.Parameter(values, requires_grad=False)
            for layer, values in merge.items()
        }
        torch.save(stored, folder / f"cat_merger_{branch}.pth")
    return folder


def test_imported_release_generates_the_same_image(unziplora, released, tiny_base):
    assert unziplora("import", released, *WORDS, f"--base={tiny_base}").code == 0
    images = []
    for name in ("fox", "cat"):
        options = ("--full-prompt=a fox", "--content-prompt=a cat", "--style-prompt=a dog", *QUICK)
        (file,) = unziplora("combine", name, *options, "--json").envelope["result"]["images"]
        images.append(Image.open(file))
    assert ImageChops.difference(*images).getbbox() is None


class Harmful:
    def __reduce__(self):
        return Path.touch, (Path("harmed"),)


def test_pickle_with_code_is_refused_and_not_run(assert_fails, released, tiny_base, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"unet.x.lora.merge_content": Harmful()}, released / "cat_merger_content.pth")
    message = assert_fails(6, "import", released, *WORDS, f"--base={tiny_base}")
    assert "cat_merger_content.pth cannot be read as merge weights" in message
    assert "it holds more than tensors" in message
    assert not (tmp_path / "harmed").exists()


def test_missing_words_are_requested_as_options(assert_fails, released, tiny_base):
    assert "--subject WORD" in assert_fails(2, "import", released, f"--base={tiny_base}")
    assert "--style WORD" in assert_fails(2, "import", released, "--subject=fox", f"--base={tiny_base}")


@pytest.mark.parametrize(
    ("code", "options", "says"),
    [
        (2, ["--name=../fox"], "is not a valid project name"),
        (3, ["--name=rose"], "A project 'rose' already exists"),
        (4, ["--base=no-such-folder"], "There is no base"),
        (6, ["--base=mini"], "does not fit this base"),
        (6, [], "fits neither SDXL nor the built-in base"),
        (2, ["--image=gone.png"], "There is no file"),
        (2, ["--subject= "], "The subject is empty"),
    ],
)
def test_refused_import_leaves_nothing(assert_fails, exported, tiny_base, code, options, says):
    base = [] if code == 6 else [f"--base={tiny_base}"]
    assert says in assert_fails(code, "import", exported, "--name=new", *base, *options)


def test_unprintable_metadata_is_ignored(unziplora, assert_fails, exported, tiny_base):
    """Metadata of a foreign file may hold anything, escape codes too."""
    for part in ("content", "style"):
        path = exported / f"fox-{part}.safetensors"
        stored = metadata(path) | {"unziplora.subject": "\x1b[2Jfox", "unziplora.project": "../../x"}
        save_file(load_file(path), path, metadata=stored)
    assert "--subject WORD" in assert_fails(2, "import", exported, f"--base={tiny_base}")
    completed = unziplora("import", exported, "--subject=fox", f"--base={tiny_base}", "--json")
    assert completed.envelope["result"]["name"] == "x"


@pytest.fixture
def sdxl_file(tmp_path) -> Path:
    """A LoRA of rank 1 on every projection of SDXL at its real size; 40 of them are silent."""
    unet = meta_unet(read_json(SDXL_CONFIG / "unet/config.json"))
    tensors = {}
    for index, (layer, linear) in enumerate(adapted_projections(unet).items()):
        module = LAYOUTS["sd-scripts"].module(layer)
        tensors[f"{module}.lora_down.weight"] = torch.ones(1, linear.in_features)
        tensors[f"{module}.lora_up.weight"] = torch.full((linear.out_features, 1), float(index >= 40))
        tensors[f"{module}.alpha"] = torch.tensor(1.0)
    save_file(tensors, tmp_path / "sdxl.safetensors")
    return tmp_path / "sdxl.safetensors"


def layers_by_program(result: dict) -> dict[str, int]:
    return {program["name"]: program["layers"] for program in result["programs"]}


def test_check_of_a_lora_with_silent_layers_reports_all_programs(unziplora, sdxl_file):
    completed = unziplora("check", sdxl_file.parent, "--json")
    result = completed.envelope["result"]
    assert completed.code == 0
    assert (result["base"], result["layers"], result["silent_layers"]) == ("sdxl", 560, 40)
    assert layers_by_program(result) == dict.fromkeys(
        ("ComfyUI", "A1111", "Forge", "InvokeAI", "diffusers"), 560
    )
    assert (result["error"], result["problems"]) == (0, [])


def test_check_reports_a_file_that_only_diffusers_refuses(unziplora, sdxl_file):
    header = {"lora_adapter_metadata": json.dumps({"unet.r": 1, "unet.lora_alpha": 1})}
    save_file(load_file(sdxl_file), sdxl_file, metadata=header)
    completed = unziplora("check", sdxl_file)
    assert completed.code == 0
    assert "refuses alphas together with" in completed.out
    assert "loads every layer" in completed.out


def test_check_of_a_file_for_another_base_says_so(unziplora, two_projects, tiny_base, tmp_path):
    path = tmp_path / "a.safetensors"
    assert unziplora("export", "fox", "--part=content", "--out", path).code == 0
    result = unziplora("check", path, f"--base={tiny_base}", "--json").envelope["result"]
    layers = layers_by_program(result)
    assert layers.pop("diffusers") == result["layers"] > 0
    assert set(layers.values()) == {0}
    assert result["loaded_by"] == ["diffusers"]
    assert "does not fit SDXL" in result["programs"][0]["refusal"]


def test_check_reports_every_program(unziplora, sdxl_file, tmp_path):
    tensors = {}
    for layer, weights in read_lora(sdxl_file).lora.items():
        tensors[f"unet.{layer}.lora_A.weight"] = weights.down
        tensors[f"unet.{layer}.lora_B.weight"] = weights.up
    save_file(tensors, tmp_path / "peft.sft")
    completed = unziplora("check", tmp_path / "peft.sft")
    assert "ignores 1,120 keys" in " ".join(completed.out.split())
    assert "all 560 layers are loaded by diffusers" in completed.out


def test_check_reports_alphas_that_diffusers_misapplies(unziplora, exported, tiny_base):
    """Alphas that differ from layer to layer."""
    path = exported / "fox-content.safetensors"
    tensors = load_file(path)
    alphas = [key for key in tensors if key.endswith(".alpha")]
    tensors[alphas[0]] = torch.tensor(1.0, dtype=torch.float16)
    save_file(tensors, path)
    completed = unziplora("check", path, f"--base={tiny_base}")
    assert completed.code == 0
    assert "with a relative error of" in completed.out
    assert "exactly" not in completed.out


def test_check_reports_the_names_of_the_releases(unziplora, released, tiny_base):
    path = released / "cat_content/pytorch_lora_weights.safetensors"
    completed = unziplora("check", path, f"--base={tiny_base}")
    assert completed.code == 0
    assert "import it as a project" in completed.out


def test_file_without_layers_is_no_success(assert_fails, tmp_path):
    save_file({}, tmp_path / "a.safetensors", metadata={"ss_network_module": "networks.lora"})
    assert "no layers" in assert_fails(6, "check", tmp_path / "a.safetensors")
    save_file({}, tmp_path / "b.safetensors")
    assert "not a LoRA" in assert_fails(6, "check", tmp_path / "b.safetensors")


def test_copy_of_a_project_folder_is_imported(unziplora, two_projects, tiny_base, tmp_path):
    copy = shutil.copytree(two_projects / "projects/rose", tmp_path / "copy")
    completed = unziplora("import", copy, f"--base={tiny_base}", "--name=again", "--json")
    assert completed.envelope["result"]["merge_weights"]


def damage(path: Path, kind: str) -> None:
    tensors = load_file(path)
    up = next(key for key in tensors if key.endswith(".lora_up.weight"))
    module = up.removesuffix(".lora_up.weight")
    if kind == "cut":
        path.write_bytes(path.read_bytes()[:-100])
        return
    if kind == "huge header":
        path.write_bytes((2**60).to_bytes(8, "little") + path.read_bytes()[8:])
        return
    changes: dict[str, dict[str, torch.Tensor | None]] = {
        "undefined": {up: torch.full_like(tensors[up], torch.nan)},
        "half": {up: None},
        "whole numbers": {up: tensors[up].to(torch.int32)},
        "text encoder": {"lora_te1_text_model_encoder_layers_0_mlp_fc1.alpha": torch.ones(1)},
        "LoHa": {f"{module}.hada_w1_a": torch.ones(1)},
        "FLUX": {"lora_unet_single_blocks_0_linear1.alpha": torch.ones(1)},
    }
    changed = {**tensors, **changes[kind]}
    save_file({key: tensor for key, tensor in changed.items() if tensor is not None}, path)


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("cut", "is not a whole safetensors file"),
        ("huge header", "is not a whole safetensors file"),
        ("undefined", "infinite or undefined numbers"),
        ("half", "only one half of the LoRA"),
        ("whole numbers", "holds int32 numbers"),
        ("text encoder", "adapts the text encoders"),
        ("LoHa", "is a LoHa"),
        ("FLUX", "is a LoRA for FLUX"),
    ],
)
def test_bad_file_is_named_and_nothing_is_written(assert_fails, exported, tiny_base, kind, says):
    bad = exported / "fox-content.safetensors"
    damage(bad, kind)
    for arguments in (["check", bad], ["import", bad, exported / "fox-style.safetensors", *WORDS]):
        assert says in assert_fails(6, *arguments, f"--base={tiny_base}")


@pytest.mark.parametrize("command", ["content", "combine", "cross"])
def test_project_with_a_bad_file_generates_nothing(assert_fails, two_projects, command):
    damage(two_projects / "projects/fox/content.safetensors", "undefined")
    assert "infinite or undefined numbers" in assert_fails(6, command, "fox", *QUICK)
