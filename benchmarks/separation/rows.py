"""The rows of the tables: which methods, and with which settings."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from benchmarks.separation.methods import Method

WITH_IMAGES = ("ours", "ours, by inversion", "ours, by the destyler")
"""Methods whose images are saved."""
COMPARED = ("DreamBooth-LoRA", "B-LoRA", "paper")
RATES = (1e-4, 3e-4, 1e-3)
LENGTHS = (200, 400, 800)


def baselines() -> list[Method]:
    """All methods but our own, with the settings of their papers scaled to the base."""
    return [
        Method("DreamBooth-LoRA", "one"),
        Method("two DreamBooth-LoRAs", "two"),
        Method("B-LoRA", "blocks"),
        Method("no prompt separation", "pair", settings={"prompt_separation": False}),
        Method("no column separation", "pair", settings={"column_separation": False}),
        Method("no block separation", "pair", settings={"block_separation": False}),
        Method("paper", "pair"),
    ]


TUNED = {
    "DreamBooth-LoRA": (3e-4, 400),
    "two DreamBooth-LoRAs": (3e-4, 800),
    "B-LoRA": (1e-3, 800),
    "no prompt separation": (1e-3, 800),
    "no column separation": (1e-3, 800),
    "no block separation": (1e-3, 800),
    "paper": (1e-3, 800),
}
"""Learning rate and steps with the best mean of the four separation columns in the grid."""


def with_rate(method: Method, rate: float, steps: int) -> Method:
    """``method`` with another learning rate and number of steps, under the same name."""
    return replace(method, settings={**method.settings, "content_lr": rate, "style_lr": rate, "steps": steps})


def tuning() -> list[Method]:
    """Every method with every learning rate and number of steps of the grid."""
    methods = [*baselines(), Method("B-LoRA token", "blocks", token_prompt=True)]
    grid = [
        replace(with_rate(method, rate, steps), name=f"{method.name} @ {rate:g} x {steps}")
        for steps in LENGTHS
        for rate in RATES
        for method in methods
    ]
    destyler = Method("ours, by the destyler", "pair", "mini", source="destyler")
    changes: dict[str, dict[str, Any]] = {
        "all timesteps": {"destyle_min_timestep": 0.0},
        "content learning rate 2e-3": {"content_lr": 2e-3},
    }
    variants = [
        replace(destyler, name=f"{destyler.name}, {name}", settings=settings)
        for name, settings in changes.items()
    ]
    return [*ours(), *variants, *grid]


def ours() -> list[Method]:
    """Our default with each source of the destyled images."""
    return [
        Method("ours, by inversion", "pair", "mini"),
        Method("ours, by inversion, described", "pair", "mini", described="read"),
        Method("ours, by the destyler", "pair", "mini", source="destyler"),
        Method("ours, by the destyler, true colours", "pair", "mini", source="destyler", described="true"),
        Method("ours, true photos (ceiling)", "pair", "mini", source="photo"),
    ]


def ablations() -> list[Method]:
    """Our default with one setting changed."""

    def changed(name: str, **settings: Any) -> Method:
        return Method(f"changed: {name}", "pair", "mini", settings)

    return [
        changed("without destyled images", destyle_images=0, destyled_only=False),
        changed("destyled images guided from no text", destyle_contrast=False),
        changed(
            "destyled images as before",
            destyle_contrast=False,
            destyle_guidance=5.0,
            destyle_fresh_noise=0.3,
            destyle_prompt="a photo of {content}",
            content_lr=2e-3,
        ),
        changed("destyle prompt a photo of", destyle_prompt="a photo of {content}"),
        changed("destyle strength .6", destyle_strength=0.6),
        changed("destyle guidance 5", destyle_guidance=5.0),
        changed("fresh noise .3", destyle_fresh_noise=0.3),
        changed("destyled images at all timesteps", destyle_min_timestep=0.0),
        changed("content from the training image too", destyled_only=False),
        changed("content learning rate 2e-3", content_lr=2e-3),
        changed("no prompt separation", prompt_separation=False),
        changed("no column separation", column_separation=False),
        changed("no block separation", block_separation=False),
    ]


def table() -> list[Method]:
    """The rows of the published table."""
    tuned = [with_rate(method, *TUNED[method.name]) for method in baselines()]
    published = Method("paper, at its own 5e-5 x 600", "pair")
    return [Method("base alone", "none"), *tuned, published, *ours(), *ablations()]


def artists() -> list[Method]:
    """The rows for pictures by artists, with the settings of the published table."""
    tuned = {name: (rate, steps) for name, (rate, steps) in TUNED.items() if name in COMPARED}
    compared = [with_rate(method, *tuned[method.name]) for method in baselines() if method.name in tuned]
    return [Method("base alone", "none"), *compared, Method("ours", "pair", "mini", source="checked")]


def quick() -> list[Method]:
    """A comparison that a CPU core finishes in a minute: few steps with high learning rates."""
    methods = [Method("base alone", "none"), Method("paper", "pair"), Method("ours", "pair", "mini")]
    return [shortened(method) for method in methods]


def shortened(method: Method) -> Method:
    """The method with few steps of high learning rates, and at most one destyled image."""
    short = {"steps": 30, "content_lr": 4e-3, "style_lr": 4e-3}
    destyling = {"destyle_images": 1, "destyle_strength": 0.4} if method.preset == "mini" else {}
    return replace(method, settings={**method.settings, **short, **destyling})
