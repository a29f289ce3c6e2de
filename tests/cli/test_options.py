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
    received = {}

    @app.command()
    @config_options(TrainConfig)
    def train(image: str, settings: dict, name: Annotated[str | None, typer.Option()] = None) -> None:
        """Train."""
        received.update(image=image, settings=settings, name=name)

    def run(*arguments: str) -> dict:
        result = CliRunner().invoke(app, arguments, catch_exceptions=False)
        assert result.exit_code == 0, result.output
        return received or {"help": result.output}

    return run


def test_only_given_options_reach_the_command(program):
    received = program("fox.png", "--rank", "8", "--content-lr", "1e-3", "--no-strict-top", "--name", "n")
    assert received == {
        "image": "fox.png",
        "name": "n",
        "settings": {"rank": 8, "content_lr": 1e-3, "strict_top": False},
    }
    assert resolve("mini", received["settings"]).rank == 8


def test_every_field_has_an_option_with_its_documentation(program, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("TERMINAL_WIDTH", "200")
    text = program("--help")["help"]
    for field in fields(TrainConfig):
        assert "--" + field.name.replace("_", "-") in text
    assert "Rank of both LoRAs" in text


def test_every_field_is_documented():
    for field in (*fields(TrainConfig), *fields(GenerateConfig)):
        assert field.metadata["help"].endswith(".")
