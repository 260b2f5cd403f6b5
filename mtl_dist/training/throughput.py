"""Throughput and memory use of training since the last line of metrics."""

import resource
import sys

import torch

from mtl_dist.activation_cache.cache import ActivationCache
from mtl_dist.activation_cache.policy import GIB


def memory_figures(device: torch.device) -> dict[str, float]:
    """Returns the peak memory of this process in GiB: resident, and allocated on its GPU if it has one."""
    unit = 1 if sys.platform == "darwin" else 1024  # bytes in the unit of ru_maxrss
    figures = {"perf/memory_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / GIB}
    if device.type == "cuda":
        figures["perf/gpu_memory_gb"] = torch.cuda.max_memory_allocated(device) / GIB
    return figures


class Throughput:
    """Counts the tokens of steps and computes rates from them; each phase has its own."""

    def __init__(self, cache: ActivationCache) -> None:
        self._cache = cache
        self._reset(0.0)

    def _reset(self, now: float) -> None:
        self._since = now
        self._tokens = self._padded = 0
        self._reads, self._computed = self._cache.reads, self._cache.computed

    def count(self, tokens: int, padded: int) -> None:
        """Adds a step with `tokens` real tokens, and `padded` tokens including padding."""
        self._tokens += tokens
        self._padded += padded

    def figures(self, now: float) -> dict[str, float]:
        """Returns the figures since the last call.

        Tokens per second over all ranks, computed tokens per real token, and the share of this process's texts that the
        activation cache had, if it is used. `now` is the training time of the phase in seconds.
        """
        figures = {
            "perf/tokens_per_second": self._tokens / (now - self._since),
            "perf/padding": self._padded / self._tokens,
        }
        reads = self._cache.reads - self._reads
        if reads:
            figures["perf/cache_hits"] = 1 - min(1.0, (self._cache.computed - self._computed) / reads)
        self._reset(now)
        return figures
