from dataclasses import fields
from typing import Annotated

import pytest
import typer
from typer.testing import CliRunner

from unziplora_cli.cli._options import config_options
from unziplora_cli.config import GenerateConfig, TrainConfig, resolve


@pytest.fixture
def program():
    app = typer.Typer()
    seen = {}

    @app.command()
    @config_options(TrainConfig)
    def train(picture: str, settings: dict, name: Annotated[str | None, typer.Option()] = None) -> None:
        """Train."""
        seen.update(picture=picture, settings=settings, name=name)

    def run(*arguments: str) -> dict:
        result = CliRunner().invoke(app, arguments, catch_exceptions=False)
        assert result.exit_code == 0, result.output
        return seen or {"help": result.output}

    return run


def test_only_what_was_given_reaches_the_command(program):
    seen = program("fox.png", "--rank", "8", "--content-lr", "1e-3", "--no-strict-top", "--name", "n")
    assert seen == {
        "picture": "fox.png",
        "name": "n",
        "settings": {"rank": 8, "content_lr": 1e-3, "strict_top": False},
    }
    assert resolve("mini", seen["settings"]).rank == 8


def test_every_field_has_an_option_with_its_documentation(program, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("TERMINAL_WIDTH", "200")
    text = program("--help")["help"]
    for each in fields(TrainConfig):
        assert "--" + each.name.replace("_", "-") in text
    assert "Rank of both LoRAs" in text


def test_every_field_is_documented():
    for each in (*fields(TrainConfig), *fields(GenerateConfig)):
        assert each.metadata["help"].endswith(".")
