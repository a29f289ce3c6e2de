from dataclasses import fields

import pytest

from unziplora_cli import resources
from unziplora_cli.cli._errors import hint
from unziplora_cli.config import GenerateConfig, TrainConfig, load_preset, resolve, resolve_generate
from unziplora_cli.errors import UsageError


def test_the_paper_preset_is_the_default():
    assert resolve("paper", {}) == TrainConfig()
    assert resolve_generate("paper", {}) == GenerateConfig()


def test_the_defaults_are_those_of_the_authors_script():
    paper = TrainConfig()
    assert (paper.rank, paper.steps, paper.recalibrations, paper.window) == (64, 600, 3, 200)
    assert (paper.content_lr, paper.style_lr, paper.merge_lr) == (5e-5, 5e-5, 5e-3)
    assert (paper.column_ratio, paper.overlap_weight, paper.weight_decay) == (0.1, 0.5, 1e-4)
    assert paper.importance_threshold / paper.importance_loss_scale == 1e-5 / 65536


def test_what_the_user_gave_wins_over_the_preset_and_the_preset_over_the_default():
    config = resolve("mini", {"rank": 4, "steps": None, "strict_top": True})
    assert (config.rank, config.resolution, config.steps, config.strict_top) == (4, 128, 500, True)


def test_every_shipped_preset_can_be_used():
    assert {"paper", "destyle", "mini"} <= set(resources.preset_names())
    for name in resources.preset_names():
        assert load_preset(name).description
        resolve(name, {})
        resolve_generate(name, {})


def test_a_preset_file_of_the_user(tmp_path):
    file = tmp_path / "mine.toml"
    file.write_text("[train]\nrank = 8\nsnr_gamma = 5\n")
    config = resolve(file, {})
    assert (config.rank, config.snr_gamma) == (8, 5.0)
    assert isinstance(config.snr_gamma, float)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[train]\nranks = 8", "'ranks' in [train] of the preset mine.toml. Did you mean 'rank'?"),
        ("[trian]\nrank = 8", "'trian' in the preset mine.toml. Did you mean 'train'?"),
        ("[generate]\nguidence = 8", "Did you mean 'guidance'?"),
        ("train = 3", "[train] in the preset mine.toml must be a table"),
        ("[train\n", "not valid TOML"),
        ('[train]\nrank = "8"', "rank must be a whole number, not '8'. It stands in the preset mine.toml."),
        ("[train]\ncontent_lr = [1]", "content-lr must be a number, not a list. It stands in"),
        ("[train]\nsteps = true", "steps must be a whole number, not True. It stands in"),
        ("[generate]\nguidance = nan", "guidance is nan, but must be from"),
    ],
)
def test_a_wrong_preset_file_is_refused_with_the_nearest_name(tmp_path, text, says):
    file = tmp_path / "mine.toml"
    file.write_text(text)
    with pytest.raises(UsageError) as caught:
        load_preset(file)
    assert says in caught.value.message


@pytest.mark.parametrize("content", [b"\xff\xfe", None])
def test_a_preset_file_that_cannot_be_read(tmp_path, content):
    file = tmp_path / "mine.toml"
    if content:
        file.write_bytes(content)
    with pytest.raises(UsageError, match=r"mine\.toml"):
        load_preset(file)


def test_an_unknown_preset_names_the_nearest_and_all():
    with pytest.raises(UsageError, match="Did you mean 'paper'") as caught:
        load_preset("papper")
    assert "mini, paper" in hint(caught.value)


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("rank", 0, "rank is 0, but must be from 1 to 1024"),
        ("rank", 5000, "from 1 to 1024"),
        ("rank", 8.0, "rank must be a whole number, not 8.0"),
        ("rank", True, "rank must be a whole number"),
        ("rank", None, "rank must be a whole number"),
        ("steps", -1, "steps is -1"),
        ("content_lr", 0, "content-lr is 0.0, but must be above 0, at most 1"),
        ("content_lr", 3.0, "content-lr is 3.0"),
        ("content_lr", float("nan"), "content-lr is nan"),
        ("content_lr", float("inf"), "content-lr is inf"),
        ("merge_lr", "fast", "merge-lr must be a number, not 'fast'"),
        ("resolution", 1000 + 1, "a multiple of 8"),
        ("optimizer", "adam", "optimizer is 'adam', but must be one of adamw, adamw8bit, prodigy."),
        ("optimizer", "prodgy", "Did you mean 'prodigy'?"),
        ("strict_top", "yes", "strict-top must be true or false"),
        ("seed", 2**64, "seed is"),
        ("snr_gamma", -1, "snr-gamma is -1.0"),
    ],
)
def test_a_value_out_of_range_names_field_range_and_value(field, value, says):
    with pytest.raises(UsageError) as caught:
        TrainConfig(**{field: value})
    assert says in caught.value.message


def test_windows_too_short_to_train_the_chosen_columns_are_refused():
    with pytest.raises(UsageError, match="never trained") as caught:
        TrainConfig(steps=4)
    needed = int(hint(caught.value).split("--steps ")[1].split()[0])
    assert TrainConfig(steps=needed).window == 3
    with pytest.raises(UsageError):
        TrainConfig(steps=needed - 1)
    assert TrainConfig(steps=4, column_separation=False).steps == 4


def test_settings_that_contradict_each_other_are_refused():
    with pytest.raises(UsageError, match="lr-warmup-steps"):
        TrainConfig(steps=100, lr_warmup_steps=101)
    with pytest.raises(UsageError, match="prior-content-prompt"):
        TrainConfig(prior_content_prompt="a fox")


def test_a_field_without_limits_does_not_exist():
    for field in (*fields(TrainConfig), *fields(GenerateConfig)):
        if isinstance(field.default, int | float) and not isinstance(field.default, bool):
            assert {"min", "above"} & set(field.metadata)
            assert "max" in field.metadata
