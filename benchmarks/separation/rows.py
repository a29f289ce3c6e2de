"""The rows of the tables: which methods, and with which settings."""

from __future__ import annotations

from dataclasses import replace

from benchmarks.separation.methods import Method

SHOWN = ("base alone", "DreamBooth-LoRA", "paper", "ours")
"""Methods whose pictures are kept."""


def quick() -> list[Method]:
    """What a CPU compares in minutes."""
    short = {"steps": 150, "content_lr": 1e-3, "style_lr": 1e-3}
    return [
        Method("base alone", "none"),
        Method("paper", "pair", settings=short),
        Method("ours", "pair", "mini", settings={"steps": 150}),
    ]


def baselines() -> list[Method]:
    """The methods of the table but our own, at the settings of their papers, scaled to the base."""
    return [
        Method("DreamBooth-LoRA", "one"),
        Method("two DreamBooth-LoRAs", "two"),
        Method("B-LoRA", "blocks"),
        Method("no prompt separation", "pair", settings={"prompt_separation": False}),
        Method("no column separation", "pair", settings={"column_separation": False}),
        Method("no block separation", "pair", settings={"block_separation": False}),
        Method("paper", "pair"),
    ]


def graded(method: Method, rate: float, steps: int) -> Method:
    """``method`` at another learning rate and length."""
    settings = {**method.settings, "content_lr": rate, "style_lr": rate, "steps": steps}
    return replace(method, name=f"{method.name} @ {rate:g} x {steps}", settings=settings)


def tuning() -> list[Method]:
    """Every method at every learning rate and length of the grid, on the tuning pictures."""
    return [
        graded(method, rate, steps)
        for steps in (200, 400, 800)
        for rate in (1e-4, 3e-4, 1e-3)
        for method in (*baselines(), Method("B-LoRA token", "blocks", token_prompt=True))
    ]


def table() -> list[Method]:
    """The rows of the published table."""
    return [Method("base alone", "none"), *baselines(), Method("ours", "pair", "mini")]
