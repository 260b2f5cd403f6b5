"""Cost of the sampler: time per batch by number of rows, peak memory, and padding by length window.

python -m benchmarks.sampler [--batch-size 32]
"""

import argparse
import statistics
import time
import tracemalloc

import numpy as np

from mtl_dist.schedule.sampler import Pool, TaskBalancedSampler

FEW, MANY = 10**4, 10**9
WINDOW, ROUNDS = 128, 9


def make_sampler(lengths: np.ndarray, batch_size: int, length_window: int = WINDOW) -> TaskBalancedSampler:
    """A sampler over two tasks with the same lengths and equal shares."""
    pools, shares = [Pool("a", lengths, {0: None}), Pool("b", lengths, {1: None})], {"a": 1, "b": 1}
    return TaskBalancedSampler(
        pools, batch_size=batch_size, seed=42, shares=shares, batches="mixed", length_window=length_window
    )


def of_size(rows: int, batch_size: int) -> TaskBalancedSampler:
    """A sampler over `rows` rows per task, whose lengths take up the memory of one number."""
    return make_sampler(np.broadcast_to(np.int32(20), rows), batch_size)


def seconds(sampler: TaskBalancedSampler, steps: range) -> float:
    """Seconds per batch."""
    start = time.perf_counter()
    for step in steps:
        sampler.batch(step)
    return (time.perf_counter() - start) / len(steps)


def print_times(batch_size: int) -> None:
    far = 10**9 * WINDOW
    cases = {"in sequence": range(far, far + 10 * WINDOW), "each in another window": range(far, 2 * far, far // 20)}
    for case, steps in cases.items():
        times = [[seconds(of_size(rows, batch_size), steps) for rows in (FEW, MANY)] for _ in range(ROUNDS)]
        few, many = (statistics.median(of_rows) * 1e3 for of_rows in zip(*times, strict=True))
        ratios = sorted(many / few for few, many in times)
        print(
            f"steps {case}: {many:.3f} ms a batch over {MANY:.0e} rows, {few:.3f} ms over {FEW:.0e};"
            f" ratio {statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f} in {ROUNDS} rounds)"
        )


def print_memory(batch_size: int) -> None:
    tracemalloc.start()
    sampler = of_size(MANY, batch_size)
    for step in (0, 10**6, 10**12):
        sampler.batch(step)
    print(f"peak memory over {MANY:.0e} rows: {tracemalloc.get_traced_memory()[1] / 1e6:.1f} MB")
    tracemalloc.stop()


def print_padding(batch_size: int) -> None:
    """Padding of short texts: log-normal lengths with a mean of about 26 tokens, truncated to 128."""
    lengths = np.random.default_rng(0).lognormal(3.0, 0.7, 50_000).clip(3, 128).astype(np.int32)
    padded: dict[int, float] = {}
    for window in (1, WINDOW):
        sampler = make_sampler(lengths, batch_size, window)
        batches = [sampler.batch(step).lengths for step in range(10 * WINDOW)]
        padded[window] = sum(int(batch[0]) * len(batch) for batch in batches) / sum(int(b.sum()) for b in batches)
    print(
        f"padded tokens per token: {padded[WINDOW]:.2f} with length_window {WINDOW}, {padded[1]:.2f} with 1;"
        f" ratio {padded[WINDOW] / padded[1]:.2f}"
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch-size", type=int, default=32, help="rows of a batch (%(default)s)")
    batch_size = parser.parse_args().batch_size
    print_times(batch_size)
    print_memory(batch_size)
    print_padding(batch_size)
