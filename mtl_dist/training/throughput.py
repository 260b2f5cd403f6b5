"""How fast a run goes, and what memory it takes: figures of the steps since the last line of metrics."""

import resource
import sys

import torch

from mtl_dist.activation_cache.cache import ActivationCache
from mtl_dist.activation_cache.policy import GIB


def memory_figures(device: torch.device) -> dict[str, float]:
    """The most memory that this process has had so far, in GiB: resident, and allocated on its GPU if it has one."""
    unit = 1 if sys.platform == "darwin" else 1024  # of the system's own figure, in bytes
    figures = {"perf/memory_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / GIB}
    if device.type == "cuda":
        figures["perf/gpu_memory_gb"] = torch.cuda.max_memory_allocated(device) / GIB
    return figures


class Throughput:
    """Counts steps and turns them into figures; a new one for each phase."""

    def __init__(self, cache: ActivationCache) -> None:
        self._cache = cache
        self._started_over(0.0)

    def _started_over(self, now: float) -> None:
        self._since = now
        self._tokens = self._padded = 0
        self._reads, self._computed = self._cache.reads, self._cache.computed

    def count(self, tokens: int, padded: int) -> None:
        """One more step, of so many tokens, and so many with padding."""
        self._tokens += tokens
        self._padded += padded

    def figures(self, now: float) -> dict[str, float]:
        """Since the last call, `now` being seconds of training: tokens a second over all ranks, tokens with padding for
        each real one, and the part of this process's texts whose frozen part was kept, if any is.
        """
        figures = {
            "perf/tokens_per_second": self._tokens / (now - self._since),
            "perf/padding": self._padded / self._tokens,
        }
        reads = self._cache.reads - self._reads
        if reads:
            figures["perf/cache_hits"] = 1 - min(1.0, (self._cache.computed - self._computed) / reads)
        self._started_over(now)
        return figures
