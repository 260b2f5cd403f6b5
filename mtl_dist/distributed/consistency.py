"""Digests of tensors, and their comparison among ranks."""

import hashlib
from collections import Counter
from collections.abc import Mapping

import torch
import xxhash

from mtl_dist.distributed.process_group import ProcessGroup
from mtl_dist.errors import TrainingError


def tensor_digest(name: str, tensor: torch.Tensor) -> str:
    """SHA-256 over name, shape and bytes."""
    digest = hashlib.sha256(f"{name}{tuple(tensor.shape)}".encode())
    digest.update(_bytes(tensor))
    return digest.hexdigest()


def quick_digest(name: str, tensor: torch.Tensor) -> str:
    """XXH3-128 over name, shape and bytes: many times faster than SHA-256, and not safe against intent."""
    digest = xxhash.xxh3_128(f"{name}{tuple(tensor.shape)}".encode())
    digest.update(_bytes(tensor))
    return digest.hexdigest()


def _bytes(tensor: torch.Tensor) -> memoryview:
    # As bytes rather than numbers: numpy has no bfloat16.
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data


def combined_digest(digests: Mapping[str, str]) -> str:
    """One SHA-256 over all values of `digests`, in their order."""
    return hashlib.sha256("".join(digests.values()).encode()).hexdigest()


def require_equal(processes: ProcessGroup, when: str, digests: Mapping[str, str]) -> None:
    """Raises one TrainingError on all ranks unless they have the same `digests`, by name of what is compared.

    The message begins with `when`, and names a rank that differs from most ranks and its first difference.
    """
    summaries = processes.all_gather(combined_digest(digests))
    if len(set(summaries)) == 1:
        return
    everything = processes.all_gather(dict(digests))
    usual = summaries.index(Counter(summaries).most_common(1)[0][0])
    rank = next(rank for rank, summary in enumerate(summaries) if summary != summaries[usual])
    reference, other = everything[usual], everything[rank]
    names = [name for name in reference | other if reference.get(name) != other.get(name)]
    raise TrainingError(
        f"{when}: rank {rank} differs from rank {usual} in {names[0]} ({len(names)} differences in all)"
    )
