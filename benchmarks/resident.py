"""Under `accelerate launch`: a run of a recipe in which each phase's peak of resident memory is taken.

`resident.py FILE [argument]...` takes the arguments of launch/train.py. Rank r writes to FILE.<r>, as JSON, the bytes
by phase: from the boundary's work to the last step, with reading rows, without the evaluation that follows. Linux
alone has the counters.
"""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path


def reset() -> None:
    """Makes the peak start anew from what is resident now."""
    Path("/proc/self/clear_refs").write_text("5")


def peak() -> int:
    """Bytes, since the last `reset`."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))


def main(file: str, arguments: Sequence[str]) -> None:
    from mtl_dist.engines.ddp import DataParallel
    from mtl_dist.training.step_result import StepResult
    from mtl_dist.training.trainer import LayerwiseLearningRateTrainer
    from tests.distributed.watched import run_watched

    peaks: dict[str, int] = {}

    class Measured(DataParallel):
        """Starts the peak anew at every boundary."""

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
