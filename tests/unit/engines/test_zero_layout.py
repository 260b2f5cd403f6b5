"""DeepSpeed's flat layout against its definition; that DeepSpeed has this layout is checked when it is initialized."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mtl_dist.engines.zero_layout import FlatLayout

SHAPES = st.lists(st.lists(st.integers(1, 5), max_size=3).map(torch.Size), min_size=1, max_size=5)


@settings(deadline=None, derandomize=True, max_examples=100)
@given(SHAPES, st.integers(1, 5), st.booleans())
def test_unsharding_is_the_inverse_of_sharding(shapes: list[torch.Size], world_size: int, by_tensor: bool) -> None:
    layout = FlatLayout(tuple(shapes), world_size, by_tensor)
    numbers = iter(range(1, 1 + sum(math.prod(shape) for shape in shapes)))
    tensors = [torch.tensor([next(numbers) for _ in range(math.prod(shape))]).view(shape) for shape in shapes]
    shards = layout.shard(tensors)
    assert shards.shape == (world_size, layout.shard_size)
    assert all(torch.equal(one, other) for one, other in zip(layout.unshard(shards), tensors, strict=True))


@pytest.mark.parametrize(
    ("by_tensor", "shards"),
    [
        # Concatenated, padded to a multiple of 2 for each rank, and split.
        (False, [[1, 2, 3, 4], [5, 0, 0, 0]]),
        # Each tensor split, the second one after padding.
        (True, [[1, 3, 4], [2, 5, 0]]),
    ],
)
def test_shards_of_two_ranks(by_tensor: bool, shards: list[list[int]]) -> None:
    layout = FlatLayout((torch.Size((2,)), torch.Size((1, 3))), 2, by_tensor)
    assert layout.shard([torch.tensor([1, 2]), torch.tensor([[3, 4, 5]])]).tolist() == shards
