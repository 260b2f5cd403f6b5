"""Script for `accelerate launch` that counts the collectives of every training step of a run.

`traffic.py FILE [argument]...` takes the arguments of launch/train.py. Rank r writes to FILE.<r>, as JSON, the number
of elements for each kind of collective in each step.
"""

import sys
from collections import Counter
from collections.abc import Callable, Sequence
from math import prod

from torch.profiler import ProfilerActivity, profile

from mtl_dist.training.step_result import StepResult
from mtl_dist.training.trainer import LayerwiseLearningRateTrainer
from tests.distributed.watched import run_watched


def main(file: str, arguments: Sequence[str]) -> None:
    steps: list[Counter[str]] = []

    def counted(_: LayerwiseLearningRateTrainer, training_step: Callable[[], StepResult]) -> StepResult:
        with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as profiled:
            result = training_step()
        elements: Counter[str] = Counter()
        for event in profiled.events() or ():
            if event.name.startswith("gloo:"):
                elements[event.name] += sum(prod(shape) for shape in event.input_shapes)
        steps.append(elements)
        return result

    run_watched(file, arguments, counted, steps)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
