"""The map of the columns shows exactly the masks that it was made of."""

import base64
import io

import numpy as np
from PIL import Image

from unziplora_cli.evaluation.column_maps import COLORS, OWNERS, WIDTH, block_maps, totals

BLOCK = "up_blocks.0.attentions.1"


def layers(widths: list[int], seed: int = 0) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """One projection of each width, with random masks."""
    random = np.random.default_rng(seed)
    return {
        f"{BLOCK}.transformer_blocks.{number}.attn1.to_q": (
            random.random(width) < 0.4,
            random.random(width) < 0.3,
        )
        for number, width in enumerate(widths)
    }


def pixels(uri: str) -> np.ndarray:
    """An embedded picture in RGBA."""
    picture = Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2])))
    return np.asarray(picture.convert("RGBA"))


def test_every_column_of_every_projection_has_the_color_of_its_owner():
    masks = layers([96] * 12)  # the names ...blocks.10... and ...11... sort after 9, not after 1
    (found,) = block_maps(masks)
    picture = pixels(found.picture.uri)
    assert found.picture.width == picture.shape[1] >= WIDTH
    height, width = picture.shape[0] // 12, picture.shape[1] // 96
    cells = picture[height // 2 :: height, width // 2 :: width]  # 12 rows, 96 columns
    for row, (content, style) in zip(cells, masks.values(), strict=True):
        owners = 2 * content.astype(int) + style
        assert (row[:, 3] == np.where(owners == 0, 0, 255)).all()
        assert (row[owners > 0, :3] == np.array(COLORS)[owners[owners > 0]]).all()


def test_narrow_projections_are_stretched_to_the_widest():
    masks = layers([32, 1280])
    picture = pixels(block_maps(masks)[0].picture.uri)
    assert picture.shape[1] == 1280
    content, style = masks[f"{BLOCK}.transformer_blocks.0.attn1.to_q"]
    assert ((picture[0, ::40, 3] > 0) == (content | style)).all()


def test_counts_and_shares_add_up():
    masks = layers([50, 70])
    masks["down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"] = (
        np.ones(20, dtype=bool),
        np.zeros(20, dtype=bool),
    )
    first, second = block_maps(masks)
    assert (first.block, second.block) == ("down_blocks.1.attentions.0", BLOCK)
    assert first.counts == {"free": 0, "style": 0, "content": 20, "both": 0}
    assert second.total == 120
    assert second.counts["both"] == sum(int((c & s).sum()) for c, s in list(masks.values())[:2])
    assert sum(map(second.share, OWNERS)) == 100
    assert sum(totals((first, second)).values()) == 140
    assert block_maps({}) == ()
