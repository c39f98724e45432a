"""The order of a run's images: only the seed decides it."""

from __future__ import annotations

import random
import time
from collections import Counter
from contextlib import closing

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset, default_collate

from deformvit import UserError, recipes
from deformvit.engine.loader import Loader, MicroBatches, Sharing, epoch_order, sharing, steps_per_epoch
from deformvit.engine.runtime import mix, seeded


class Numbers(Dataset):
    """Items are their index and a random number of each generator; something is dropped of every fifth."""

    def __init__(self, count, seconds=0.0):
        self.count, self.seconds = count, seconds
        self.dropped = Counter()

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        time.sleep(self.seconds)
        if index % 5 == 0:
            self.dropped["fives"] += 1
        return torch.tensor([index, random.random(), np.random.rand(), torch.rand(()).item()])


def configured(batch, workers=0, accumulate=1):
    config = recipes.demo()
    config.data.batch_size, config.data.workers, config.run.accumulate = batch, workers, accumulate
    return config


def micro_batches(count, batch, first, last, share=None):
    return list(MicroBatches(Numbers(count), batch, 7, first, last, share or Sharing(0, 1, 1, batch)))


def test_epochs_take_every_image_once_in_another_order():
    taken = micro_batches(23, 4, 0, 10)  # two epochs of five steps; three images are left over in each
    assert len(taken) == 10
    for epoch in (0, 1):
        indices = [index for step in taken[5 * epoch : 5 * epoch + 5] for _, index in step]
        assert len(set(indices)) == 20
        assert {e for step in taken[5 * epoch : 5 * epoch + 5] for e, _ in step} == {epoch}
    assert [i for _, i in taken[0]] != [i for _, i in taken[5]]


def test_a_run_goes_on_at_any_step():
    whole = micro_batches(23, 4, 0, 15)
    for first in (1, 4, 5, 7, 14):
        assert micro_batches(23, 4, first, 15) == whole[first:]


@pytest.mark.parametrize(("size", "accumulate"), [(2, 1), (1, 4), (2, 2), (4, 2)])
def test_shares_make_up_the_step(size, accumulate):
    micro = 8 // (size * accumulate)
    parts = [micro_batches(30, 8, 0, 6, Sharing(rank, size, accumulate, micro)) for rank in range(size)]
    whole = micro_batches(30, 8, 0, 6)
    for step in range(6):
        own = [parts[rank][step * accumulate + k] for rank in range(size) for k in range(accumulate)]
        assert sorted(key for part in own for key in part) == sorted(whole[step])


def test_seeds_and_epochs_are_unrelated():
    images = Numbers(1000)
    orders = [epoch_order(images, seed, epoch) for seed, epoch in ((0, 1), (1, 0), (0, 0), (1, 1))]
    for i, one in enumerate(orders):
        for other in orders[:i]:
            assert (one == other).float().mean() < 0.01
    assert len({mix(a, b, c) for a in range(20) for b in range(20) for c in range(20)}) == 8000


def test_data_sets_may_give_the_order():
    images = Numbers(6)
    images.shuffled = lambda generator: torch.arange(5, -1, -1)
    (step,) = MicroBatches(images, 6, 0, 0, 1, Sharing(0, 1, 1, 6))
    assert [index for _, index in step] == [5, 4, 3, 2, 1, 0]


@pytest.mark.parametrize("workers", [1, 2])
def test_loader_processes_change_nothing(workers):
    images = Numbers(40)
    alone = torch.stack(list(Loader(images, default_collate, configured(8), 2, 12)))
    many = torch.stack(list(Loader(images, default_collate, configured(8, workers), 2, 12)))
    assert torch.equal(alone, many)
    assert alone[..., 1:].unique().numel() == alone[..., 1:].numel()  # every item has its own random numbers


def test_seeding_an_item_leaves_the_generators_alone():
    torch.manual_seed(3)
    expected = torch.rand(3)
    torch.manual_seed(3)
    with seeded(5):
        inner = torch.rand(3)
    assert torch.equal(torch.rand(3), expected)
    assert not torch.equal(inner, expected)


@pytest.mark.parametrize("workers", [0, 2])
def test_what_is_left_out_of_images_is_counted(workers):
    loader = Loader(Numbers(40), default_collate, configured(8, workers), 0, 5)
    list(loader)
    assert loader.take_dropped() == ["8 fives"]
    assert loader.take_dropped() == []


@pytest.mark.parametrize(("workers", "factor"), [(0, 1), (2, 2)])
def test_loader_and_model_are_measured(workers, factor):
    """30 ms an image in the loader; 60 ms for four in the model, or more where the machine is busy."""
    loader = Loader(Numbers(40, seconds=0.03), default_collate, configured(4, workers), 0, 10)
    model, began = 0.0, time.perf_counter()
    with closing(iter(loader)) as batches:
        for _ in range(10):
            next(batches)
            before = time.perf_counter()
            time.sleep(0.06)
            model += time.perf_counter() - before
        measured = loader.throughput(time.perf_counter() - began)
    assert measured["loader_images_s"] == pytest.approx(33.3 * factor, rel=0.3)
    assert measured["loader_ratio"] == pytest.approx(measured["loader_images_s"] * model / 40, rel=0.2)
    assert loader.throughput(1.0) == {}


def test_errors_name_batches_that_do_not_divide():
    with pytest.raises(UserError, match="10: not divisible by 1 processes x 4 accumulated"):
        sharing(configured(10, accumulate=4))
    with pytest.raises(UserError, match="3 training images do not fill a batch of 10"):
        steps_per_epoch(Numbers(3), configured(10))
