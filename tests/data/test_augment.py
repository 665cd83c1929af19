"""Random crops and flips: what they do, that they repeat, and where they are applied."""

import numpy as np
import pytest
import torch
from PIL import Image

from anml.config.facts import DATASETS, IMAGENET
from anml.config.training import TrainConfig
from anml.data import class_images
from anml.data.class_images import ClassImages, crop_and_flip, draw_crops
from anml.data.episodes import draw_episode, shuffled_batch
from anml.rng import torch_generator


@pytest.fixture
def data() -> ClassImages:
    generator = torch.Generator().manual_seed(1)
    return ClassImages(torch.randint(256, (4, 6, 3, 16, 16), dtype=torch.uint8, generator=generator), "noise", IMAGENET)


def generator() -> torch.Generator:
    return torch_generator(1, "test")


def test_crops_lie_inside_the_image_and_have_the_areas_and_shapes_that_are_documented() -> None:
    left, top, width, height = draw_crops(20_000, generator()).unbind(dim=1)
    assert min(left.min(), top.min()) >= 0
    assert max((left + width).max(), (top + height).max()) <= 1
    area, ratio = width * height, width / height
    assert 0.08 <= area.min() < 0.09
    assert 0.95 < area.max() <= 1
    assert 0.75 - 1e-9 <= ratio.min() < 0.76
    assert 1.32 < ratio.max() <= 4 / 3 + 1e-9
    assert float(ratio.log().mean()) == pytest.approx(0, abs=0.01)


def test_a_crop_is_that_part_of_the_image_resized_bilinearly(monkeypatch) -> None:
    box = torch.tensor([[0.25, 0.125, 0.5, 0.75]], dtype=torch.float64)
    monkeypatch.setattr(class_images, "draw_crops", lambda count, generator: box)
    monkeypatch.setattr(class_images, "FLIPPED", 0.0)
    pixels = torch.rand(1, 1, 16, 16, generator=generator())
    # Pillow's own bilinear resizing of the same box; only interior pixels, as it replicates the edges of the box.
    expected = Image.fromarray(pixels[0, 0].numpy()).resize((16, 16), Image.Resampling.BILINEAR, box=(4, 2, 12, 14))
    found = crop_and_flip(pixels, generator())[0, 0]
    assert np.allclose(found[2:-2, 2:-2], np.asarray(expected)[2:-2, 2:-2], atol=1e-5)


@pytest.mark.parametrize(("flipped", "expected"), [(0.0, lambda x: x), (1.0, lambda x: x.flip(-1))])
def test_the_whole_image_stays_as_it_is_or_is_mirrored(monkeypatch, flipped, expected) -> None:
    whole = torch.tensor([[0.0, 0.0, 1.0, 1.0]], dtype=torch.float64)
    monkeypatch.setattr(class_images, "draw_crops", lambda count, generator: whole)
    monkeypatch.setattr(class_images, "FLIPPED", flipped)
    pixels = torch.rand(1, 3, 16, 16, generator=generator())
    assert torch.allclose(crop_and_flip(pixels, generator()), expected(pixels), atol=1e-5)


def test_half_of_the_images_are_mirrored(monkeypatch) -> None:
    whole = torch.tensor([0.0, 0.0, 1.0, 1.0], dtype=torch.float64)
    monkeypatch.setattr(class_images, "draw_crops", lambda count, generator: whole.expand(count, 4))
    ramp = torch.arange(8.0).expand(1000, 1, 8, 8)
    mirrored = (crop_and_flip(ramp, generator())[:, 0, 0, 0] > 3.5).float().mean()
    assert float(mirrored) == pytest.approx(0.5, abs=0.05)


def test_no_crop_is_blank_where_the_image_is_not() -> None:
    images = torch.full((500, 2, 16, 16), 0.25)
    images[:, 1, 3:5, 3:5] = 1.0  # In one channel, in one corner: a third of the crops miss it.
    crops = crop_and_flip(images, generator())
    assert (crops.amax(dim=(2, 3)) - crops.amin(dim=(2, 3))).amax(dim=1).min() > 0.5 / 255
    assert 0.1 < float((crops == images).flatten(1).all(dim=1).float().mean()) < 0.6


def test_an_image_that_is_blank_itself_stays_as_it_is() -> None:
    images = torch.full((20, 1, 16, 16), 0.25)
    assert torch.allclose(crop_and_flip(images, generator()), images)


def test_photographs_are_normalised_after_augmentation(data) -> None:
    index = torch.tensor([0, 1])
    mean, std = (torch.tensor(values)[:, None, None] for values in IMAGENET)
    raw = data.images[index, index].float() / 255
    assert torch.allclose(data.batch(index, index)[0], (raw - mean) / std)
    augmented = data.batch(index, index, augment=generator())[0]
    assert torch.allclose(augmented, (crop_and_flip(raw, generator()) - mean) / std)


def test_characters_are_only_scaled(data) -> None:
    index = torch.tensor([2])
    plain = ClassImages(data.images, "noise")
    assert torch.equal(plain.batch(index, index)[0], data.images[index, index].float() / 255)


def test_a_batch_of_a_step_is_always_the_same_and_of_another_step_is_not(data) -> None:
    first, second = (shuffled_batch(data, 24, seed=1, step=step, augment=True) for step in (0, 1))
    assert torch.equal(shuffled_batch(data, 24, seed=1, step=0, augment=True)[0], first[0])
    # The same images, every epoch cropped anew.
    plain = shuffled_batch(data, 24, seed=1, step=0)
    assert torch.equal(first[1], plain[1])
    assert not torch.allclose(first[0], plain[0])
    assert not torch.allclose(first[0].sort(dim=0)[0], second[0].sort(dim=0)[0])


def test_an_episode_is_augmented_as_a_whole_and_draws_the_same_examples(data) -> None:
    settings = {"dataset": "mini-imagenet", "model": "sanml", "train_size": 6, "remember_size": 5}
    plain = draw_episode(data, TrainConfig(**settings), seed=1, index=3)
    augmented = draw_episode(data, TrainConfig(**settings, augment=True), seed=1, index=3)
    assert torch.equal(plain.labels, augmented.labels)
    assert not any(torch.allclose(a, b) for a, b in zip(plain.images, augmented.images, strict=True))


def test_characters_are_cropped_but_slightly_and_not_mirrored():
    _, _, width, height = draw_crops(5_000, generator(), class_images.AREA_OF_CHARACTERS).unbind(dim=1)
    assert (width * height).min() >= 0.8 - 1e-9
    ramp = torch.arange(8.0).expand(500, 1, 8, 8).contiguous()
    cropped = crop_and_flip(ramp, generator(), are_characters=True)
    assert (cropped[:, 0, :, 0] < cropped[:, 0, :, -1]).all()
    assert not torch.allclose(cropped, ramp)
    assert DATASETS["omniglot"].are_characters
