"""The pictures that the built-in base learns from: deterministic, complete, and truthfully captioned."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from recipes.mini.draw import draw
from recipes.mini.layers import Layers
from recipes.mini.scene import (
    COLORS,
    CONTEXTS,
    GENERIC,
    HELD_OUT_STYLES,
    MARKINGS,
    MARKS,
    STYLES,
    SUBJECTS,
    VOCABULARY,
    Individual,
    Scene,
    caption,
    random_scene,
    sample_scenes,
)  # fmt: skip

FOX = Scene(Individual("fox", "red", "white", "dotted", 3), "photo", "", 4)
ALL_STYLES = (*STYLES, GENERIC, *HELD_OUT_STYLES)


def scenes(count: int) -> list[tuple[Scene, str]]:
    rng = np.random.default_rng(0)
    drawn = [random_scene(rng) for _ in range(count)]
    return [(scene, caption(scene, rng)) for scene in drawn]


def contrast(scene: Scene) -> float:
    """How far the subject's mean colour lies from what surrounds it, in 8-bit steps."""
    alpha = Layers(scene, 128).alpha
    picture = draw(scene).astype(float)
    inside = (picture * alpha[..., None]).sum((0, 1)) / alpha.sum()
    outside = (picture * (1 - alpha[..., None])).sum((0, 1)) / (1 - alpha).sum()
    return float(np.abs(inside - outside).max())


@pytest.mark.parametrize("style", ALL_STYLES)
def test_every_style_draws_a_visible_subject_at_each_size(style: str) -> None:
    scene = replace(FOX, style=style)
    assert contrast(scene) > 8
    for size in (64, 128):
        picture = draw(scene, size)
        assert picture.shape == (size, size, 3)
        assert picture.dtype == np.uint8


@pytest.mark.parametrize("style", ALL_STYLES)
def test_a_scene_is_drawn_the_same_twice(style: str) -> None:
    scene = replace(FOX, style=style, context="in the snow")
    first = draw(scene)
    draw(replace(scene, pose_seed=99))
    np.testing.assert_array_equal(first, draw(scene))


@pytest.mark.parametrize("subject", SUBJECTS)
def test_every_subject_fills_the_frame_without_leaving_it(subject: str) -> None:
    for seed in range(6):
        scene = replace(
            FOX, individual=replace(FOX.individual, subject=subject, shape_seed=seed), pose_seed=seed
        )
        alpha = Layers(scene, 64).alpha
        rows, columns = np.flatnonzero(alpha.max(1) > 0.5), np.flatnonzero(alpha.max(0) > 0.5)
        assert max(np.ptp(rows), np.ptp(columns)) > 0.55 * 64
        border = np.concatenate([alpha[0], alpha[-1], alpha[:, 0], alpha[:, -1]])
        assert (border > 0.5).sum() <= 6, "the subject is cut off"


@pytest.mark.parametrize("context", CONTEXTS)
def test_every_context_covers_the_picture_and_differs_from_the_studio(context: str) -> None:
    scene = replace(FOX, context=context)
    layers = Layers(scene, 64)
    assert layers.cover_back(*layers.back_roles[1:]).min() == 1.0
    if context:
        assert np.abs(draw(scene).astype(int) - draw(FOX)).mean() > 10


@pytest.mark.parametrize("marking", MARKINGS)
def test_markings_cover_part_of_the_body_and_nothing_else(marking: str) -> None:
    for subject in SUBJECTS:
        layers = Layers(
            replace(FOX, individual=replace(FOX.individual, subject=subject, marking=marking)), 64
        )
        body = layers.cover("body", "shade")
        assert (layers.marks <= body + 1e-6).all()
        share = layers.marks.sum() / body.sum()
        assert share == 0 if marking == "plain" else 0.05 < share < 0.85


def test_a_style_changes_the_look_and_never_the_shape() -> None:
    plain = Layers(FOX, 64)
    for style in ALL_STYLES[1:]:
        styled = Layers(replace(FOX, style=style), 64)
        np.testing.assert_array_equal(styled.alpha, plain.alpha)
        np.testing.assert_array_equal(styled.marks, plain.marks)
        np.testing.assert_array_equal(styled.back_lines(2.0), plain.back_lines(2.0))


def test_styles_are_further_apart_than_poses() -> None:
    """No two styles give nearly the same picture of one scene."""
    pictures = {
        style: draw(replace(FOX, style=style), 64).astype(float) for style in (*STYLES, *HELD_OUT_STYLES)
    }
    names = list(pictures)
    for i, one in enumerate(names):
        for other in names[i + 1 :]:
            assert np.abs(pictures[one] - pictures[other]).mean() > 6, (one, other)


def test_an_individual_keeps_its_shape_in_every_pose_and_differs_from_others() -> None:
    from recipes.mini.markings import marking_shapes

    twin = replace(FOX.individual, shape_seed=8)
    assert not np.allclose(marking_shapes(FOX.individual)[0][0], marking_shapes(twin)[0][0])
    area = [
        Layers(replace(FOX, individual=FOX.individual, pose_seed=seed), 64).alpha.sum() for seed in range(6)
    ]
    assert max(area) / min(area) < 1.6


def test_captions_tell_the_truth() -> None:
    for scene, text in scenes(2000):
        words, who = text.split(), scene.individual
        assert who.subject in words
        assert [w for w in words if w in SUBJECTS] == [who.subject]
        assert set(words) & set(MARKINGS) <= {who.marking}
        assert set(words) & set(MARKS.values()) <= {MARKS.get(who.marking)}
        assert set(words) & set(COLORS) <= {who.color, who.second_color}
        if scene.style != "photo":
            assert "style" in words
        if "style" in words and scene.style != GENERIC:
            assert f"in {scene.style} style" in text
        assert not any(c and c in text for c in CONTEXTS if c != scene.context)
        assert scene.context in text


def test_captions_leave_out_what_may_be_left_out() -> None:
    drawn = scenes(2000)

    def share(holds: list[bool]) -> float:
        return sum(holds) / len(holds)

    assert 0.4 < share(["style" not in text for scene, text in drawn if scene.style == "photo"]) < 0.6
    assert 0.04 < share([scene.style == GENERIC for scene, _ in drawn]) < 0.1
    assert 0.8 < share([scene.individual.color in text.split() for scene, text in drawn]) < 0.9
    assert 0.25 < share([scene.context == "" for scene, _ in drawn]) < 0.45


def test_base_captions_never_name_a_held_out_style() -> None:
    hidden = {word for style in HELD_OUT_STYLES for word in style.split()}
    assert not hidden & set(VOCABULARY)
    for scene, text in scenes(2000):
        assert scene.style not in HELD_OUT_STYLES
        assert not hidden & set(text.split())


def test_the_vocabulary_holds_every_word_of_the_grammar_once() -> None:
    assert len(set(VOCABULARY)) == len(VOCABULARY)
    assert all(word.isalpha() and word.islower() for word in VOCABULARY)
    made_up = 0
    for scene, text in scenes(500):
        unknown = [word for word in text.split() if word not in VOCABULARY]
        assert len(unknown) <= 1 + (scene.style == GENERIC)
        made_up += bool(unknown)
    assert made_up < 200


def test_sample_scenes_are_in_different_held_out_styles() -> None:
    styles = [scene.style for scene in sample_scenes().values()]
    assert len(set(styles)) == len(styles)
    assert set(styles) <= set(HELD_OUT_STYLES)
