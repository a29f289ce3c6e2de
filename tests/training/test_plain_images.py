"""Images of one color train like any other."""

from collections.abc import Callable
from math import isfinite
from pathlib import Path

import pytest
from PIL import Image

from unziplora_cli.events import run
from unziplora_cli.training.engine import train
from unziplora_cli.training.request import TrainRequest

PLAIN = {
    "one colour": ("RGB", (200, 120, 40)),
    "black": ("L", 0),
    "white": ("RGB", (255, 255, 255)),
    "transparent": ("RGBA", (0, 0, 0, 0)),
}


@pytest.mark.parametrize("kind", PLAIN)
def test_plain_image_trains(kind: str, make_request: Callable[..., TrainRequest], tmp_path: Path) -> None:
    mode, colour = PLAIN[kind]
    picture = tmp_path / "plain.png"
    Image.new(mode, (80, 64), colour).save(picture)
    request = make_request(tmp_path / "run", steps=4, recalibrations=1, request={"images": (picture,)})
    result = run(train(request))
    assert all(isfinite(loss) for loss in result.losses)
    for lora in (result.content, result.style):
        assert all(weights.up.isfinite().all() and weights.down.isfinite().all() for weights in lora.values())
        assert any(weights.up.any() for weights in lora.values())
