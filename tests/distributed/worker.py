"""Trains several recipes one after another in the processes of one launch, so that these start only once.

`worker.py FILE`, where FILE is JSON: a list of {"arguments": [...], "accumulation": n, "engine": a name of ENGINES,
"without": null or a name of BREAKS}. Rank r writes the error that ended each run, or null, to FILE.<r>.
"""

import json
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import DistributedType
from torch.nn.parallel import DistributedDataParallel

from mtl_dist.config.load import parse
from mtl_dist.distributed.launch_check import start_accelerator
from mtl_dist.distributed.launch_request import LaunchRequest
from mtl_dist.engines import base
from mtl_dist.engines.base import Engine
from mtl_dist.engines.ddp import DataParallel
from mtl_dist.engines.factory import engine_class_of
from mtl_dist.engines.fsdp2 import FullySharded
from mtl_dist.errors import UserError
from mtl_dist.schedule.phases import Phase
from mtl_dist.tasks.classification import ClassificationMetrics
from mtl_dist.training import build
from mtl_dist.training.callbacks.early_stopping import EarlyStopping
from mtl_dist.training.callbacks.evaluator import Evaluator
from mtl_dist.training.run import run_on
from mtl_dist.training.step_result import StepResult
from mtl_dist.training.trainer import LayerwiseLearningRateTrainer

if find_spec("deepspeed"):  # a machine that is lent for its GPU may lack it
    from mtl_dist.engines import zero
    from mtl_dist.engines.zero import ZeroRedundancy

    ZERO = (ZeroRedundancy,)
    zero.PERSISTENCE_THRESHOLD = 0  # otherwise tiny parameters would all stay whole
else:
    ZERO = ()


def without_rewrap() -> None:
    """The model stays wrapped as in the first phase."""
    wrap = DataParallel.wrap
    DataParallel.wrap = lambda self: None if isinstance(self.model_wrapped, DistributedDataParallel) else wrap(self)


def without_trimming() -> None:
    """The token embeddings train with every row, as in plain PyTorch."""
    build.trim_vocabulary = lambda encoder, vocabulary: None


def without_check() -> None:
    """The ranks do not compare their parameters."""
    Engine.check_equal = lambda self, when: None


def with_a_stray_rank() -> None:
    """Before the second phase the last rank changes one weight slightly, as a faulty device would."""
    enter_phase = Engine.enter_phase

    def stray(self: Engine, name: str, units: Sequence[str]) -> None:
        if name == "upper" and self.processes.rank == self.processes.world_size - 1:
            with torch.no_grad():
                dict(self.model.named_parameters())["heads.mood.3.bias"][0] += 1e-7
        enter_phase(self, name, units)

    Engine.enter_phase = stray


def without_resharding() -> None:
    """Parameters that are still gathered at a phase boundary are unfrozen in place of their shards."""
    FullySharded.reshard_parameters = Engine.reshard_parameters


def without_the_optimizer_check() -> None:
    """No rank checks whether the optimizer holds the trainable parameters and their state."""
    base.check_optimizer = lambda state, when, before: None


def without_a_new_initialization() -> None:
    """DeepSpeed stays as it was initialized for the first phase."""
    initialize = ZeroRedundancy._initialize_deepspeed
    ZeroRedundancy._destroy_deepspeed = lambda self: None
    ZeroRedundancy._initialize_deepspeed = lambda self: initialize(self) if self._deepspeed is None else None
    # A checkpoint with decayed rows of an embedding that has no optimizer state would be refused as corrupt.
    Engine._decay_unused_rows = lambda self, rates, norm: None


def without_keeping_optimizer_state() -> None:
    """DeepSpeed is initialized anew, with optimizer state that starts at zero."""
    initialize = ZeroRedundancy._initialize_deepspeed

    def forget(self: ZeroRedundancy) -> None:
        initialize(self)
        self.optimizer.state.clear()

    ZeroRedundancy._initialize_deepspeed = forget


def with_a_stray_measurement() -> None:
    """The last rank measures a loss that differs in the last digits."""
    measure = Evaluator.measure

    def stray(self: Evaluator, split: str, max_mistakes: int = 0) -> dict[str, ClassificationMetrics]:
        metrics = measure(self, split, max_mistakes)
        if self._context.group.rank == self._context.group.world_size - 1:
            metrics["mood"] = replace(metrics["mood"], loss=metrics["mood"].loss * (1 + 1e-12))
        return metrics

    Evaluator.measure = stray


def with_a_stray_memory() -> None:
    """The last rank remembers measurements that were never made, and would end each phase at once."""
    evaluate_and_decide = EarlyStopping.evaluate_and_decide

    def stray(self: EarlyStopping, phase: Phase) -> bool:
        if self._group.rank == self._group.world_size - 1:
            self.trainer.train_state.measured[phase.name] = [0.0] * 9
        return evaluate_and_decide(self, phase)

    EarlyStopping.evaluate_and_decide = stray


def until_step_7() -> None:
    """All ranks end after six steps, as if they were killed: nothing is saved on the way out."""
    training_step = LayerwiseLearningRateTrainer.training_step

    def killed(self: LayerwiseLearningRateTrainer, step: int) -> StepResult:
        if step == 6:
            raise RuntimeError("killed")
        return training_step(self, step)

    LayerwiseLearningRateTrainer.training_step = killed


ENGINES = {
    "data parallel": LaunchRequest("a job"),
    "fsdp2": LaunchRequest("a job", engine=DistributedType.FSDP),
    **{
        f"zero{stage}": LaunchRequest("a job", engine=DistributedType.DEEPSPEED, settings={"zero_stage": stage})
        for stage in (1, 2, 3)
    },
}
BREAKS: dict[str, tuple[Callable[[], None], ...]] = {
    "rewrap": (without_rewrap,),
    "rewrap and check": (without_rewrap, without_check),
    "resharding": (without_resharding, without_check),
    "resharding and checks": (without_resharding, without_check, without_the_optimizer_check),
    "new initialization": (without_a_new_initialization,),
    "new initialization and check": (without_a_new_initialization, without_the_optimizer_check),
    "optimizer state": (without_keeping_optimizer_state,),
    "optimizer state and check": (without_keeping_optimizer_state, without_the_optimizer_check),
    "trimming": (without_trimming,),
    "stray rank": (with_a_stray_rank,),
    "stray measurement": (with_a_stray_measurement,),
    "stray memory": (with_a_stray_memory,),
    "the later steps": (until_step_7,),
}
"""Negative controls by name: the mechanism that is removed, and the checks that would report that."""


def methods(part: type) -> list[tuple[str, Any]]:
    return [(name, value) for name, value in vars(part).items() if callable(value)]


def main(file: Path) -> None:
    accelerator, processes, _ = start_accelerator()
    parts = (Engine, DataParallel, FullySharded, *ZERO, Evaluator, EarlyStopping, LayerwiseLearningRateTrainer)
    intact: list[tuple[Any, str, Any]] = [(part, name, value) for part in parts for name, value in methods(part)]
    # DeepSpeed's stage 3 leaves its own linear function behind, which rounds differently.
    intact += [(torch.nn.functional, "linear", torch.nn.functional.linear)]
    intact += [(build, "trim_vocabulary", build.trim_vocabulary), (base, "check_optimizer", base.check_optimizer)]
    errors: list[str | None] = []
    for one in json.loads(file.read_text()):
        accelerator.gradient_accumulation_steps = one["accumulation"]
        for remove in BREAKS.get(one["without"], ()):
            remove()
        try:
            command = parse(one["arguments"])
            engine = engine_class_of(ENGINES[one["engine"]], command.recipe, accelerator.device.type)
            run_on(accelerator, processes, command, engine)
            errors.append(None)
        except UserError as error:
            errors.append(str(error))
        except RuntimeError as error:
            traceback.print_exc()
            errors.append(str(error).splitlines()[0])  # one of torch's has many
        for part, name, value in intact:
            setattr(part, name, value)
    file.with_name(f"{file.name}.{processes.rank}").write_text(json.dumps(errors))
    accelerator.end_training()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
