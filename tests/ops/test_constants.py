"""The cache of constant tensors."""

from __future__ import annotations

import threading
import time

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from deformvit.ops.constants import ConstantCache


class Maker:
    """Makes ranges, and counts how often."""

    def __init__(self):
        self.calls = 0

    def __call__(self, n):
        self.calls += 1
        return torch.arange(n)


def test_made_once_for_the_same_arguments():
    cache, make = ConstantCache(4), Maker()
    first = cache.get(make, 3)
    assert cache.get(make, 3) is first
    assert cache.get(make, 5).tolist() == [0, 1, 2, 3, 4]
    assert (make.calls, len(cache)) == (2, 2)
    assert cache.get(Maker(), 3) is not first


def test_the_least_recently_used_is_dropped():
    cache, make = ConstantCache(2), Maker()
    one, _ = cache.get(make, 1), cache.get(make, 2)
    assert cache.get(make, 1) is one
    cache.get(make, 3)  # drops 2
    assert cache.get(make, 1) is one
    assert len(cache) == 2
    assert make.calls == 3
    cache.get(make, 2)
    assert make.calls == 4


def test_made_in_inference_used_in_training():
    cache, weight = ConstantCache(2), torch.ones(3, requires_grad=True)
    with torch.inference_mode():
        cache.get(torch.ones, 3)
    (weight * cache.get(torch.ones, 3)).sum().backward()
    assert weight.grad.tolist() == [1, 1, 1]


def test_fake_tensors_are_not_kept():
    cache, make = ConstantCache(2), Maker()
    with FakeTensorMode():
        assert type(cache.get(make, 3)) is not torch.Tensor
    assert len(cache) == 0
    assert type(cache.get(make, 3)) is torch.Tensor


@pytest.mark.filterwarnings("ignore:.torch.jit.trace:FutureWarning")
def test_recorded_where_pytorch_records():
    """A traced or exported program computes the constant instead of holding the kept tensor."""
    cache, make = ConstantCache(2), Maker()
    kept = cache.get(make, 3)

    class Module(torch.nn.Module):
        def forward(self, x):
            return x + cache.get(make, 3)

    assert "arange" in str(torch.jit.trace(Module(), torch.zeros(3)).graph)
    assert "arange" in str(torch.export.export(Module(), (torch.zeros(3),), strict=False).graph)
    assert torch.compile(Module(), backend="eager", fullgraph=True)(torch.zeros(3)).tolist() == [0, 1, 2]
    assert cache.get(make, 3) is kept


class SlowKey(int):
    """An argument whose hash lets other threads run: between any two steps of the cache."""

    def __hash__(self):
        time.sleep(0)
        return int(self)


def test_several_threads():
    """Many threads use and drop the same few tensors."""
    cache, errors = ConstantCache(2), []

    def work():
        try:
            for i in range(300):
                assert cache.get(torch.arange, SlowKey(i % 3)).shape == (i % 3,)
        except Exception as error:
            errors.append(repr(error))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert len(cache) == 2
