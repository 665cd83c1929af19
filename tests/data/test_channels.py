"""Grey images for a model of colours, and the reverse."""

import numpy as np
import torch
from PIL import Image

from anml.config.facts import IMAGENET
from anml.data.class_images import ClassImages, in_channels

FIRST = torch.tensor([0]), torch.tensor([0])


def test_grey_is_the_luminance_of_colours() -> None:
    colours = np.random.default_rng(0).integers(256, size=(8, 8, 3), dtype=np.uint8)
    images = torch.from_numpy(colours.transpose(2, 0, 1).copy())[None, None]
    grey, _ = ClassImages(images, "noise", channels=1).batch(*FIRST)
    expected = np.asarray(Image.fromarray(colours).convert("L")) / 255
    assert grey.shape == (1, 1, 8, 8)
    assert np.abs(grey[0, 0].numpy() - expected).max() < 1 / 255  # Pillow rounds.


def test_colours_of_a_grey_image_are_three_times_the_same_and_normalised_one_by_one() -> None:
    images = torch.full((1, 1, 1, 4, 4), 51, dtype=torch.uint8)
    colours, _ = ClassImages(images, "flat", IMAGENET, channels=3).batch(*FIRST)
    expected = [(0.2 - mean) / std for mean, std in zip(*IMAGENET, strict=True)]
    assert torch.allclose(colours[0, :, 0, 0], torch.tensor(expected))


def test_grey_images_are_normalised_by_the_luminance_of_means_and_deviations() -> None:
    mean, std = in_channels(IMAGENET, 1) or ((), ())
    assert np.allclose(mean, 0.299 * 0.485 + 0.587 * 0.456 + 0.114 * 0.406)
    assert np.allclose(std, 0.299 * 0.229 + 0.587 * 0.224 + 0.114 * 0.225)
    assert in_channels(None, 3) is None
