"""Random resized crops and horizontal flips of a batch, on its device; what is drawn is drawn on the CPU.

As in Szegedy et al. 2015 ("Going deeper with convolutions", section 6): a crop of 8 to 100 % of the image's area with
an aspect ratio between 3/4 and 4/3, resized to the size of the image.
"""

import torch
from torch.nn.functional import affine_grid, grid_sample

AREA = (0.08, 1.0)
RATIO = (3 / 4, 4 / 3)
FLIPPED = 0.5
# A wide crop of nearly the whole area would stick out: drawn again so often, then the whole image is taken.
_TRIES = 10


def crop_and_flip(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Return a random crop of each square image [n, C, H, W], resized bilinearly to [H, W] and mirrored half the time.

    Crops begin at any fraction of a pixel. They depend on the generator alone, so that all devices agree.
    """
    boxes = draw_crops(len(images), generator)
    mirrored = torch.rand(len(images), generator=generator, dtype=torch.float64) < FLIPPED
    left, top, width, height = boxes.unbind(dim=1)
    zero = torch.zeros_like(left)
    # Rows map output coordinates, from -1 to 1 across the image, to input coordinates.
    across = torch.stack([torch.where(mirrored, -width, width), zero, 2 * left + width - 1], dim=1)
    down = torch.stack([zero, height, 2 * top + height - 1], dim=1)
    grid = affine_grid(torch.stack([across, down], dim=1).to(images), list(images.shape), align_corners=False)
    return grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)


def draw_crops(count: int, generator: torch.Generator) -> torch.Tensor:
    """Return crops, float64 [count, 4]: left, top, width and height as fractions of a square image.

    Area uniform in AREA, aspect ratio (width to height) log-uniform in RATIO, place uniform.
    """
    area, ratio, x, y = torch.rand(4, count, _TRIES, generator=generator, dtype=torch.float64)
    low, high = torch.tensor(RATIO, dtype=torch.float64).log()
    area, ratio = AREA[0] + (AREA[1] - AREA[0]) * area, (low + (high - low) * ratio).exp()
    width, height = (area * ratio).sqrt(), (area / ratio).sqrt()
    tries = torch.stack([x * (1 - width), y * (1 - height), width, height], dim=2)
    fits = (width <= 1) & (height <= 1)
    first = fits.int().argmax(dim=1)
    whole = torch.tensor([0.0, 0.0, 1.0, 1.0], dtype=torch.float64)
    return torch.where(fits.any(dim=1)[:, None], tries[torch.arange(count), first], whole)
