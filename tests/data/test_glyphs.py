"""The built-in data set: the same everywhere, independent of what else is asked for, and learnable but not trivial."""

import hashlib

import numpy as np
import pytest

from anml.data.glyphs import draw_glyphs


@pytest.fixture(scope="module")
def glyphs() -> np.ndarray:
    return draw_glyphs(range(40))


def nearest_neighbour_accuracy(images: np.ndarray) -> float:
    """Share of the last 5 drawings of every class whose nearest earlier drawing, on raw pixels, is of its class."""
    pixels = images.reshape(*images.shape[:2], -1).astype(np.int64)
    known, asked = (part.reshape(-1, pixels.shape[-1]) for part in (pixels[:, :-5], pixels[:, -5:]))
    distance = (known**2).sum(1) - 2 * asked @ known.T
    found = distance.argmin(1) // (pixels.shape[1] - 5)
    return float((found == np.arange(len(asked)) // 5).mean())


def test_golden_bytes():
    digest = hashlib.sha256(draw_glyphs(range(3, 6), drawings=4, seed=7).tobytes()).hexdigest()
    assert digest == "78b0a476c00bb61c746228c93877e5627358aa9fd1f132230777d1f80246cdbb"


def test_the_same_call_gives_the_same_bytes(glyphs: np.ndarray):
    np.testing.assert_array_equal(draw_glyphs(range(40)), glyphs)


def test_a_class_does_not_depend_on_the_range_asked_for(glyphs: np.ndarray):
    np.testing.assert_array_equal(draw_glyphs(range(7, 37, 15)), glyphs[7:37:15])


def test_a_drawing_does_not_depend_on_how_many_are_asked_for(glyphs: np.ndarray):
    np.testing.assert_array_equal(draw_glyphs(range(5), drawings=3), glyphs[:5, :3])


def test_another_seed_gives_other_characters(glyphs: np.ndarray):
    other = draw_glyphs(range(40), seed=1)
    assert (other != glyphs).any((1, 2, 3, 4)).all()


def test_the_global_random_state_is_neither_used_nor_changed(glyphs: np.ndarray):
    np.random.seed(3)
    expected = np.random.random()
    np.random.seed(3)
    np.testing.assert_array_equal(draw_glyphs(range(2)), glyphs[:2])
    assert np.random.random() == expected


@pytest.mark.parametrize("size", [14, 28, 50, 112, 150])
def test_any_size_has_the_same_ink_on_a_white_background(size: int, glyphs: np.ndarray):
    images = draw_glyphs(range(10), drawings=3, size=size)
    assert images.dtype == np.uint8
    assert images.shape == (10, 3, 1, size, size)
    assert (images == 255).mean() > 0.6
    np.testing.assert_allclose(images.mean((2, 3, 4)), glyphs[:10, :3].mean((2, 3, 4)), atol=1)


def test_strokes_are_dark_thin_and_anti_aliased(glyphs: np.ndarray):
    assert (glyphs.min((2, 3, 4)) < 100).all()
    assert 0.06 < 1 - glyphs.mean() / 255 < 0.12  # Omniglot: 0.088
    assert len(np.unique(glyphs)) > 16


def test_characters_stay_on_the_page(glyphs: np.ndarray):
    border = np.concatenate([glyphs[..., [0, -1], :], glyphs[..., [0, -1]].swapaxes(-1, -2)], -2)
    assert (border == 255).mean() > 0.97


def test_all_drawings_and_all_classes_differ(glyphs: np.ndarray):
    flat = glyphs.reshape(-1, 28 * 28)
    assert len(np.unique(flat, axis=0)) == len(flat)


def test_drawings_are_nearer_to_their_class_than_to_others(glyphs: np.ndarray):
    mean = glyphs.astype(float).mean(1, keepdims=True)
    own = np.abs(glyphs - mean).mean()
    others = np.abs(glyphs - np.roll(mean, 1, axis=0)).mean()
    assert own < 0.9 * others


def test_nearest_neighbours_do_well_but_not_perfectly(glyphs: np.ndarray):
    assert 0.35 < nearest_neighbour_accuracy(glyphs) < 0.75  # chance: 0.025


def test_there_is_nothing_to_draw_for_no_classes():
    assert draw_glyphs(range(0)).shape == (0, 20, 1, 28, 28)
