"""A training run that records each phase's peak of resident memory, started by `accelerate launch` (Linux only).

`peak_memory.py FILE [argument]...` takes the arguments of launch/train.py. Rank r writes bytes by phase to FILE.<r> as
JSON: the peak from the start of the phase to its last step, excluding the evaluation that follows.
"""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path


def reset() -> None:
    """Resets the peak to the memory that is resident now."""
    Path("/proc/self/clear_refs").write_text("5")


def peak() -> int:
    """Peak of resident memory since the last `reset`, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))


def main(file: str, arguments: Sequence[str]) -> None:
    from mtl_dist.engines.ddp import DataParallel
    from mtl_dist.training.step_result import StepResult
    from mtl_dist.training.trainer import LayerwiseLearningRateTrainer
    from tests.distributed.watched import run_watched

    peaks: dict[str, int] = {}

    class Measured(DataParallel):
        """Resets the peak at the start of each phase."""

        def enter_phase(self, name: str, units: Sequence[str]) -> None:
            reset()
            super().enter_phase(name, units)

    def measured(trainer: LayerwiseLearningRateTrainer, training_step: Callable[[], StepResult]) -> StepResult:
        result = training_step()
        peaks[trainer.schedule.phase_at(result.batch.step).name] = peak()
        return result

    run_watched(file, arguments, measured, peaks, Measured)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
