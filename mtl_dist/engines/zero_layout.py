"""The layout in which DeepSpeed flattens and shards the tensors of a parameter group."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad


@dataclass(frozen=True)
class FlatLayout:
    """Positions of a parameter group's tensors in the ranks' shards, each of which is one flat tensor."""

    shapes: tuple[torch.Size, ...]
    world_size: int
    by_tensor: bool
    """Shard every tensor by itself, as stage 3 does; the other stages concatenate all tensors and shard the result."""

    @property
    def shard_size(self) -> int:
        """Elements of a rank's shard."""
        return sum(self._piece_sizes)

    @property
    def _run_sizes(self) -> list[int]:
        """Elements of each run: a stretch of the concatenated tensors that is sharded by itself."""
        sizes = [shape.numel() for shape in self.shapes]
        return sizes if self.by_tensor else [sum(sizes)]

    @property
    def _piece_sizes(self) -> list[int]:
        """Elements of a rank's piece of each run; the last rank's is padded with zeros."""
        alignment = 1 if self.by_tensor else 2  # DeepSpeed's
        return [math.ceil(size / (alignment * self.world_size)) * alignment for size in self._run_sizes]

    def shard(self, tensors: Sequence[Tensor]) -> Tensor:
        """Shards of all ranks, [world_size, shard_size]."""
        runs = torch.cat([tensor.flatten() for tensor in tensors]).split(self._run_sizes)
        pieces = [
            pad(run, (0, size * self.world_size - len(run))).view(self.world_size, -1)
            for run, size in zip(runs, self._piece_sizes, strict=True)
        ]
        return torch.cat(pieces, dim=1)

    def unshard(self, shards: Tensor) -> list[Tensor]:
        """Tensors from the shards of all ranks: the inverse of `shard`."""
        pieces = zip(shards.split(self._piece_sizes, dim=1), self._run_sizes, strict=True)
        flat = torch.cat([piece.flatten()[:size] for piece, size in pieces])
        sizes = [shape.numel() for shape in self.shapes]
        return [part.view(shape) for part, shape in zip(flat.split(sizes), self.shapes, strict=True)]
