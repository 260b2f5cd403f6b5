"""Under `accelerate launch`: a run of a recipe in which every training step's collectives are counted.

`traffic.py FILE [argument]...` takes the arguments of launch/train.py. Rank r writes to FILE.<r>, as JSON, for each
step the elements that it gave to each kind of collective.
"""

import json
import sys
from collections import Counter
from collections.abc import Sequence
from math import prod
from pathlib import Path

from torch.profiler import ProfilerActivity, profile

from mtl_dist.cli import parse
from mtl_dist.engine import DataParallel
from mtl_dist.launch_guard import start_accelerator
from mtl_dist.run import run_on
from mtl_dist.trainer import LayerwiseLearningRateTrainer, StepResult

training_step = LayerwiseLearningRateTrainer.training_step


def main(file: str, arguments: Sequence[str]) -> None:
    steps: list[Counter[str]] = []

    def counted(self: LayerwiseLearningRateTrainer, step: int) -> StepResult:
        with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as profiled:
            result = training_step(self, step)
        elements: Counter[str] = Counter()
        for event in profiled.events() or ():
            if event.name.startswith("gloo:"):
                elements[event.name] += sum(prod(shape) for shape in event.input_shapes)
        steps.append(elements)
        return result

    LayerwiseLearningRateTrainer.training_step = counted
    accelerator, processes, _ = start_accelerator()
    run_on(accelerator, processes, parse(arguments), DataParallel)
    Path(f"{file}.{processes.rank}").write_text(json.dumps(steps))
    accelerator.end_training()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
