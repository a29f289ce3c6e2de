"""Every setting is used somewhere, and what the table calls "without effect" changes nothing."""

import ast
from collections.abc import Callable
from dataclasses import Field, fields, replace
from pathlib import Path
from typing import Any

import pytest

import unziplora_cli
from tests.training.conftest import assert_equal_results, run_training
from unziplora_cli.config import ComputeConfig, GenerateConfig, TrainConfig
from unziplora_cli.dependencies import GENERATION, TRAINING, without_effect
from unziplora_cli.training.request import TrainRequest

PACKAGE = Path(unziplora_cli.__file__).parent

WITHOUT: dict[str, dict[str, Any]] = {
    "lr_warmup_steps": {"lr_scheduler": "constant"},
    "importance_threshold": {"importance_score": "magnitude"},
    "importance_loss_scale": {"importance_score": "magnitude"},
    "accumulate_importance": {"importance_steps": 1},
    "crops": {"crop": "center"},
    "validate_every": {"steps": 19},
    "save_every": {"steps": 19},
    "checkpoint_every": {"steps": 19},
    "merge_lr": {"column_separation": False},
    "destyle_images": {"destyle": "folder"},
}
"""What else must be set for a setting to have no effect, beside the defaults."""

WITH: dict[str, dict[str, Any]] = {
    "lr_warmup_steps": {"lr_scheduler": "cosine"},
    "accumulate_importance": {"importance_steps": 5},
    "validation_images": {"validate_every": 10},
    "prior_weight_content": {"destyle_images": 2},
    "prior_weight_style": {"prior_style": "photos"},
    "prior_images": {"prior_content": "photos"},
    "checkpoint_every": {"checkpoint_every": 100},
    "destyler": {"destyle": "edit"},
}
"""What else must be set for a setting to have an effect."""


def changed(setting: "Field[Any]") -> Any:
    """Another value than the default."""
    default, limits = setting.default, setting.metadata
    if "choices" in limits:
        return next(choice for choice in limits["choices"] if choice != default)
    if isinstance(default, bool):
        return not default
    if isinstance(default, str) or setting.name == "destyler":
        return "a drawing of {content}"
    if setting.name.endswith("_every"):
        return 100
    return default + 2 if isinstance(default, int) else default * 0.75 + 0.1


CONDITIONAL = sorted({name for rule in TRAINING for name in rule.settings})
FIELDS = {setting.name: setting for setting in fields(TrainConfig)}


def test_every_setting_is_read_by_the_program() -> None:
    read = {
        node.attr
        for path in PACKAGE.rglob("*.py")
        if path.name not in ("config.py", "dependencies.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load)
    }
    read |= {f"{name}_{branch}" for name in ("prior", "prior_weight") for branch in ("content", "style")}
    read |= {"prior_content_prompt", "prior_style_prompt"}  # read by getattr, like those above
    settings = {
        setting.name for kind in (TrainConfig, GenerateConfig, ComputeConfig) for setting in fields(kind)
    }
    assert settings <= read


def test_the_table_names_settings() -> None:
    assert set(CONDITIONAL) <= set(FIELDS)
    assert {name for rule in GENERATION for name in rule.settings} <= {f.name for f in fields(GenerateConfig)}


@pytest.mark.parametrize("name", CONDITIONAL)
def test_a_setting_without_effect_is_named_and_one_with_effect_is_not(name: str) -> None:
    value = changed(FIELDS[name])
    off = {"column_separation": False} if name not in ("accumulate_importance",) else {}
    config = TrainConfig(**{**off, **WITHOUT.get(name, {}), name: value})
    (sentence,) = without_effect(config, {name: value})
    assert sentence.startswith(f"{name.replace('_', '-')} has no effect: ")
    assert without_effect(config, {}) == ()
    on = {"destyle_images": 4} if name.startswith("destyle") else {}
    config = TrainConfig(**{name: value, "steps": 600, **on, **WITH.get(name, {})})
    assert without_effect(config, {name: value}) == ()


def test_a_setting_given_as_off_asks_for_nothing() -> None:
    assert (
        without_effect(TrainConfig(), {"lr_warmup_steps": 0, "destyled_only": False, "save_every": 0}) == ()
    )
    assert without_effect(TrainConfig(), {"destyle_contrast": False}) != ()


def test_a_negative_prompt_needs_guidance() -> None:
    config = GenerateConfig(guidance=1.0, negative_prompt="blurry")
    assert without_effect(config, {"negative_prompt": "blurry"}, GENERATION) == (
        "negative-prompt has no effect: guidance is 1, which turns it off.",
    )
    assert without_effect(replace(config, guidance=5.0), {"negative_prompt": "blurry"}, GENERATION) == ()


def test_what_has_no_effect_changes_no_weight(
    make_request: Callable[..., TrainRequest], tmp_path: Path
) -> None:
    settings = {"column_separation": False, "crop": "center", "importance_score": "count"}
    plain = make_request(tmp_path / "plain", steps=4, **settings)
    other = {name: changed(FIELDS[name]) for name in CONDITIONAL if name not in settings}
    silent = {
        name: value
        for name, value in other.items()
        if without_effect(replace(plain.config, **{name: value}), {name: value})
    }
    assert len(silent) > 10
    assert {"merge_lr", "strict_top", "lr_warmup_steps", "destyle_strength"} <= set(silent)
    with_all = make_request(tmp_path / "all", **{**settings, "steps": 4, **silent})
    assert_equal_results(run_training(with_all).result, run_training(plain).result)
