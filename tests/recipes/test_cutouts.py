"""Pictures of cut-outs, their captions and labels, and the packages that they come from."""

import base64
import hashlib
import io
import json
import tarfile
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from recipes.mini import artists, cutouts, model, pairs, strangers
from recipes.mini.artists import CUTOUT, SETS, TEST, TRAIN, TRAINED
from recipes.mini.cutouts import Artwork
from recipes.mini.fetch import Icons, Package, fit, pack
from recipes.mini.pictures import NAMES, label
from recipes.mini.scene import COLORS, SUBJECTS, Individual
from recipes.mini.train_destyler import colors_of

SHOWN = ("octopus", "giraffe", "castle", "fox")
BLUE = (40, 90, 220)
ART = Artwork(Individual("octopus", "red", "white", "plain", 1), "flat", "flat", "", 3, recolored=False)


@pytest.fixture(scope="module")
def sheets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A blue disc with a white middle for every subject of two sets."""
    folder = tmp_path_factory.mktemp("cutouts")
    y, x = np.mgrid[0:160, 0:160] - 80.0
    far = np.hypot(x, y)
    disc = np.zeros((160, 160, 4), np.uint8)
    disc[far < 60] = (*BLUE, 255)
    disc[far < 20] = 255
    for name in ("flat", "3d"):
        pack({subject: fit(Image.fromarray(disc)) for subject in SHOWN}, folder / f"{name}.webp")
    (folder / "sheets.json").write_text(json.dumps(dict.fromkeys(("flat", "3d"), SHOWN)))
    return folder


def test_a_cutout_fills_its_square_and_comes_back_from_its_sheet(sheets: Path) -> None:
    disc = artists.load(sheets, "flat")["giraffe"]
    rows = np.flatnonzero(disc[..., 3].max(1) > 128)
    assert disc.shape == (CUTOUT, CUTOUT, 4)
    assert (rows[0], rows[-1]) == pytest.approx((2, CUTOUT - 3), abs=1)
    np.testing.assert_allclose(disc[CUTOUT // 2, CUTOUT // 4, :3], BLUE, atol=12)


def test_the_look_keeps_the_artists_colors_before_any_background(sheets: Path) -> None:
    for context in ("", "at night"):
        picture = cutouts.draw(replace(ART, context=context), sheets)
        blue = np.abs(picture.astype(int) - BLUE).max(-1) < 30
        assert 0.31 < blue.mean() < 0.43  # a disc 86 to 98 pixels wide without its middle
    assert not np.array_equal(
        cutouts.draw(ART, sheets), cutouts.draw(replace(ART, context="at night"), sheets)
    )


@pytest.mark.parametrize("style", ["flat", "photo", "comic", "mosaic"])
def test_recoloring_turns_blue_into_the_color_that_is_said(sheets: Path, style: str) -> None:
    unchanged = cutouts.draw(replace(ART, style=style), sheets).astype(int)
    red = cutouts.draw(replace(ART, style=style, recolored=True), sheets).astype(int)
    redder = (red[..., 0] - red[..., 2]) - (unchanged[..., 0] - unchanged[..., 2])
    assert redder[redder > 60].size > 0.15 * redder.size


def test_a_marking_takes_the_second_color(sheets: Path) -> None:
    plain = replace(ART, recolored=True)
    who = replace(ART.individual, marking="striped", second_color="green")
    changed = np.abs(
        cutouts.draw(plain, sheets).astype(int) - cutouts.draw(replace(plain, individual=who), sheets)
    ).max(-1)
    assert 0.05 < (changed > 60).mean() < 0.3


def test_captions_say_subject_and_color_only_where_it_is_not_the_artists_own() -> None:
    rng = np.random.default_rng(0)
    natural = [cutouts.caption(ART, rng) for _ in range(40)]
    recolored = [cutouts.caption(replace(ART, recolored=True), rng) for _ in range(40)]
    assert all("octopus" in text and "flat" in text for text in natural + recolored)
    assert not any(color in text.split() for text in natural for color in COLORS)
    assert all("red" in text.split() for text in recolored)


def test_labels_name_the_subject_and_leave_out_what_is_not_known() -> None:
    names = list(NAMES.values())
    subject, style, context, marking, color = label(ART)
    assert (names[0][subject], names[1][style], names[2][context]) == ("octopus", "flat", "")
    assert (marking, color) == (-1, -1)
    assert label(replace(ART, recolored=True))[4] == names[4].index("red")
    assert NAMES["subject"][: len(SUBJECTS)] == SUBJECTS  # what the former classifier counts stays in place


def test_artworks_follow_from_their_seed_and_never_show_what_is_kept_for_tests(sheets: Path) -> None:
    arts = [cutouts.random_artwork(np.random.default_rng(n), sheets) for n in range(60)]
    assert arts == [cutouts.random_artwork(np.random.default_rng(n), sheets) for n in range(60)]
    assert {artists.split(art.individual.subject, art.name) for art in arts} == {TRAIN}
    assert not any(art.style in ("comic", "oil") for art in arts if art.individual.subject in SUBJECTS)


def test_a_pair_shows_a_cutout_in_a_place_and_as_a_photo_of_it_before_a_plain_background(
    sheets: Path,
) -> None:
    beach = pairs.planes(replace(ART, context="on a beach"), sheets, evaluation=False)
    plain = pairs.planes(ART, sheets, evaluation=False)
    assert beach.shape == (18, 128, 128)
    np.testing.assert_array_equal(beach[pairs.PLANES["photo"]], plain[pairs.PLANES["photo"]])
    assert not np.array_equal(beach[pairs.PLANES["back"]], plain[pairs.PLANES["back"]])
    covered = beach[pairs.PLANES["alpha"]][0] > 250
    blue = [
        (np.argmax(beach[pairs.PLANES[name]], 0) == 2)[covered].mean()
        for name in ("styled", "photo", "front")
    ]
    assert min(blue) > 0.8  # all but the white middle
    red = pairs.planes(replace(ART, recolored=True), sheets, evaluation=False)[pairs.PLANES["photo"]]
    assert (np.argmax(red, 0) == 0)[covered].mean() > 0.8


def test_a_pair_tells_the_destyler_the_colors_of_recolored_cutouts_alone() -> None:
    names, colors = list(pairs.NAMES), slice(4, 6)
    assert names[colors] == ["color", "second_color"]
    red, none = list(COLORS).index("red"), len(COLORS) + 1
    for art, expected in ((ART, [none, none]), (replace(ART, recolored=True), [red, none])):
        assert colors_of(torch.tensor([pairs.label(art)])[:, colors]).tolist() == [expected]
    assert pairs.label(ART)[0] == pairs.NOTHING  # the reader does not learn subjects that are not drawn
    assert pairs.label(replace(ART, individual=replace(ART.individual, subject="fox")))[0] == 0


def test_pairs_for_evaluation_are_drawn_and_half_of_the_others_are_cutouts(sheets: Path) -> None:
    plan = pairs.Plan(train=200, tune=16, held_out=16)
    made = [isinstance(plan.scene(index, sheets), Artwork) for index in range(plan.total)]
    assert not any(made[:32])
    assert 75 < sum(made) < 125
    assert not any(
        isinstance(replace(plan, artworks=0.0).scene(index, sheets), Artwork) for index in range(99)
    )


def test_no_set_that_is_held_out_is_ever_trained_on() -> None:
    assert {"openmoji", "fxemoji"} == set(SETS) - set(TRAINED)
    purposes = {artists.split(subject, name) for name in TRAINED for subject in artists.table()}
    assert purposes == {TRAIN, TEST}
    assert len(artists.subjects()) == len(set(artists.subjects())) >= 600


def test_an_archive_is_checked_by_its_hash() -> None:
    content = b"packed"
    npm = base64.b64encode(hashlib.sha512(content).digest()).decode()
    for digest in (f"sha512-{npm}", f"sha256-{hashlib.sha256(content).hexdigest()}"):
        package = Package("@a/b", "1.0", digest, "MIT", "A")
        assert package.is_whole(content)
        assert not package.is_whole(content + b".")
    assert package.address == "https://registry.npmjs.org/@a/b/-/b-1.0.tgz"


def test_icons_are_found_by_chart_by_alias_and_by_what_others_call_them(tmp_path: Path) -> None:
    icons = {"width": 8, "height": 8, "icons": {"octopus": {"body": "<a/>"}, "polar-bear": {"body": "<b/>"}}}
    icons["aliases"] = {"kraken": {"parent": "octopus", "width": 9}}
    with tarfile.open(tmp_path / "icons.tgz", "w:gz") as archive:
        for name, value in (("icons.json", icons), ("chars.json", {"1f419": "kraken"})):
            member = tarfile.TarInfo(f"package/{name}")
            body = json.dumps(value).encode()
            member.size = len(body)
            archive.addfile(member, io.BytesIO(body))
    icons = Icons(tmp_path / "icons.tgz", {"1f43b": {"polarbear", "bear"}})
    assert (icons.find("1f419"), icons.find("1f43b"), icons.find("1f47b")) == ("kraken", "polar-bear", None)
    assert 'viewBox="0 0 9 8"><a/>' in icons.svg("kraken")


def test_a_wider_base_predicts_what_the_older_one_did(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    monkeypatch.setattr(model, "grammar_words", lambda: ("a", "red", "fox"))
    monkeypatch.setattr(model, "LAYERS", (1, 1, 1))
    old = model.new_components(tmp_path / "old")
    monkeypatch.setattr(model, "grammar_words", lambda: ("a", "red", "fox", "octopus"))
    monkeypatch.setattr(model, "LAYERS", (1, 1, 2))
    new = model.widen(old, tmp_path / "new")
    assert new.tokenizer.tokenize("octopus") == ["octopus"]
    text = "a red fox"
    with torch.no_grad():
        states = [
            parts.text_encoder_2.eval()(torch.tensor([parts.tokenizer(text).input_ids]))
            for parts in (old, new)
        ]
        torch.testing.assert_close(states[0].text_embeds, states[1].text_embeds)
        noise, embedded = torch.randn(1, 12, 16, 16), torch.randn(1, 5, 160)
        added = {"text_embeds": torch.randn(1, 96), "time_ids": torch.ones(1, 6)}
        before, after = (
            parts.unet.eval()(noise, torch.tensor([400]), embedded, added_cond_kwargs=added)[0]
            for parts in (old, new)
        )
    torch.testing.assert_close(before, after, rtol=1e-4, atol=1e-5)
    assert sum(p.numel() for p in new.unet.parameters()) > sum(p.numel() for p in old.unet.parameters())


def test_a_named_picture_becomes_a_cutout_unless_it_has_a_background(monkeypatch) -> None:
    def png(color: tuple[int, int, int, int]) -> bytes:
        picture = Image.new("RGBA", (400, 300), color)
        picture.paste((255, 0, 0, 255), (100, 100, 308, 204))
        picture.save(stream := io.BytesIO(), "PNG")
        return stream.getvalue()

    paths = [f"usr/png/animals/big_dog_{number}.png" for number in range(40)]
    content = [png((0, 0, 0, 0)) if number % 2 else png((9, 9, 9, 255)) for number in range(40)]
    monkeypatch.setattr(strangers, "files", lambda archive: zip(paths, content, strict=True))
    shown = list(strangers.others(Path("any"), strangers.CLIPART))
    clear = [p for p, n in zip(paths, range(40), strict=True) if n % 2 and not zlib.crc32(p.encode()) % 2]
    assert [subject for subject, _ in shown] == ["dog"] * min(len(clear), strangers.MOST)
    alpha = shown[0][1][..., 3]
    assert alpha.shape == (104, 104)
    rows, columns = (
        np.flatnonzero(alpha.max(axis) > 127) for axis in (1, 0)
    )  # 208 x 104 pixels become 100 x 50
    assert (rows[0], rows[-1], columns[0], columns[-1]) == (27, 76, 2, 101)
