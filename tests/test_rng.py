"""Generators by name: the same everywhere, independent of each other and of everything global."""

import random

import numpy as np
import torch

from anml.rng import derived_seed, numpy_generator, torch_generator


def test_known_seeds():
    """Results of years ago are only found again if these never change."""
    assert derived_seed(1, "episode", 17) == 1155409470034922783
    assert torch.randint(1000, (4,), generator=torch_generator(1, "episode", 17)).tolist() == [767, 517, 418, 30]
    assert numpy_generator(1, "glyph", 3).integers(1000, size=4).tolist() == [979, 482, 653, 53]


def test_every_part_of_a_name_counts():
    names = [(1, "a"), (2, "a"), (1, "b"), (1, "a", 0), (1, "a", 1), (1, "a", "0"), (11, "a"), (1, "a", 1, 1)]
    assert len({derived_seed(seed, *name) for seed, *name in names}) == len(names)


def test_a_generator_starts_anew_whenever_it_is_asked_for():
    first, second = (torch.rand(5, generator=torch_generator(3, "x")) for _ in range(2))
    assert torch.equal(first, second)


def test_streams_are_not_correlated():
    draws = torch.stack([torch.rand(2000, generator=torch_generator(1, "episode", index)) for index in range(20)])
    correlation = torch.corrcoef(draws) - torch.eye(20)
    assert correlation.abs().max() < 0.12  # Five standard deviations of independent streams.


def test_global_generators_neither_matter_nor_move():
    torch.manual_seed(5)
    before = torch.get_rng_state(), str(np.random.get_state()), random.getstate()
    drawn = torch.rand(3, generator=torch_generator(1, "x")), numpy_generator(1, "x").random()
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (str(np.random.get_state()), random.getstate()) == before[1:]
    torch.manual_seed(6)
    assert torch.equal(torch.rand(3, generator=torch_generator(1, "x")), drawn[0])
    assert numpy_generator(1, "x").random() == drawn[1]
