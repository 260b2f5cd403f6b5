"""A training run from its command line to its summary: plan, build, resume, fit, finish. Every rank does all of it."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from torch import Tensor

from mtl_dist.checkpoint import storage
from mtl_dist.config.load import Command, resolved_yaml
from mtl_dist.device import choose_kernels
from mtl_dist.distributed.consistency import require_equal
from mtl_dist.distributed.launch_check import bf16_hint, start_accelerator
from mtl_dist.distributed.preemption import StopRequest
from mtl_dist.distributed.process_group import ProcessGroup
from mtl_dist.distributed.watchdog import Watchdog
from mtl_dist.engines.ddp import DataParallel
from mtl_dist.engines.factory import EngineClass, engine_class_of
from mtl_dist.errors import Interrupted, TrainingError, UserError
from mtl_dist.finite import find_nonfinite
from mtl_dist.io import write_text_atomically
from mtl_dist.run_layout import RECIPE, STACKS
from mtl_dist.tracking.accelerate_backend import check_trackers
from mtl_dist.tracking.console import TrainingProgress, show_log_lines
from mtl_dist.tracking.tracker import Tracker
from mtl_dist.train_state import TrainState
from mtl_dist.training.build import build_context, plan_run
from mtl_dist.training.callbacks.checkpointer import Checkpointer
from mtl_dist.training.callbacks.early_stopping import EarlyStopping
from mtl_dist.training.callbacks.evaluator import Evaluator
from mtl_dist.training.callbacks.metrics_logger import MetricsLogger
from mtl_dist.training.callbacks.preemption import Preemption
from mtl_dist.training.callbacks.progress_bar import ProgressBar
from mtl_dist.training.callbacks.replica_check import ReplicaCheck
from mtl_dist.training.context import RunContext
from mtl_dist.training.finish import save_results, summarize
from mtl_dist.training.run_folder import open_run_folder
from mtl_dist.training.run_metadata import describe, start_of, write_setup
from mtl_dist.training.trainer import TransferLearningTrainer

logger = logging.getLogger(__name__)


def run(command: Command, stop_request: StopRequest) -> None:
    """Carries out what the command line asks for, until `stop_request` is made.

    Raises UserError, TrainingError or Interrupted, the same on every rank.
    """
    accelerator, group, request = start_accelerator()
    engine_class = engine_class_of(request, command.recipe, accelerator.device.type)
    run_on(accelerator, group, command, engine_class, stop_request)
    accelerator.end_training()


def run_on(
    accelerator: Accelerator,
    group: ProcessGroup,
    command: Command,
    engine_class: EngineClass = DataParallel,
    stop_request: StopRequest | None = None,
) -> None:
    """Carries out the command among processes that have formed their group already; raises as `run` does."""
    show_log_lines(group.is_main)
    recipe = command.recipe
    choose_kernels(accelerator.device, recipe.safety.deterministic)
    group.on_main_process(lambda: check_trackers(recipe.tracking))
    plan = plan_run(recipe, group, accelerator.gradient_accumulation_steps)
    logger.info("%s", plan.table())
    if command.plan_only:
        return
    if hint := bf16_hint(accelerator):
        logger.info("note: %s", hint)
    require_equal(group, "start", {f"the {name}": digest for name, digest in plan.digests.items()})
    watchdog = Watchdog(group, recipe.safety.timeout_seconds, Path(recipe.output_dir) / STACKS)
    context = build_context(plan, accelerator, group, engine_class, watchdog.heartbeat)
    execute(context, resume(context, command.files), stop_request or StopRequest(), watchdog)


def resume(context: RunContext, recipe_files: Sequence[str] = ()) -> TrainState:
    """Opens the run folder and loads the checkpoint that the run resumes from; a fresh state where there is none.

    The last of all that can be refused, because it moves an earlier run's files aside.
    """
    recipe, group = context.recipe, context.group
    found = None
    with group.raise_together():
        if group.is_main:
            found = open_run_folder(Path(recipe.output_dir), context.identity, recipe.checkpoint.resume, recipe_files)
    found = group.all_gather(found)[0]
    if found is None:
        return TrainState()
    with group.raise_together():
        tensors = storage.load(found, context.engine.parameter_templates)
        _check_finite(found, *tensors)
    context.engine.load(*tensors)
    state = TrainState(**found.state["train_state"])
    total = context.schedule_of(state).total_steps
    logger.info("resuming from %s, step %s of %s", found.folder.name, state.step, total)
    return state


def _check_finite(
    checkpoint: storage.Checkpoint, weights: Mapping[str, Tensor], optimizer_state: Mapping[str, Tensor]
) -> None:
    """Raises UserError for a checkpoint that no finite number can be computed from."""
    if fault := find_nonfinite([*weights.items(), *optimizer_state.items()]):
        raise UserError(
            f"{checkpoint.folder}: {fault}; remove this checkpoint to resume from the one before, or start anew with"
            " checkpoint.resume=never and a lower optimizer.lr"
        )


def execute(context: RunContext, state: TrainState, stop_request: StopRequest, watchdog: Watchdog) -> None:
    """Trains what is left to train, evaluates on the test split, and saves model and summary.

    Raises Interrupted, on every rank and after a checkpoint, where the run was asked to stop.
    """
    folder = Path(context.recipe.output_dir)
    description = describe(context)
    start = start_of(context.engine, state.step, context.micro_steps)
    context.group.on_main_process(lambda: write_text_atomically(folder / RECIPE, resolved_yaml(context.recipe)))
    context.group.on_main_process(lambda: write_setup(folder, description, start))
    tracker = Tracker(folder, context.recipe, context.group, state.wandb_id, state.step)
    state.wandb_id = tracker.wandb_id
    summary, exit_code = None, TrainingError.exit_code
    with stop_request.waiting():
        try:
            with watchdog.running():
                summary = _fit_and_finish(context, state, tracker, stop_request, watchdog)
            exit_code = 0
            # No rank asks the others any more, and what remains of the run needs no checkpoint.
            stop_request.end_with(exit_code)
        except (Interrupted, UserError) as error:
            exit_code = error.exit_code
            if isinstance(error, Interrupted):
                tracker.alert("Stopped, and can resume", str(error))
            raise
        finally:
            tracker.finish(summary, exit_code)


def _fit_and_finish(
    context: RunContext, state: TrainState, tracker: Tracker, stop_request: StopRequest, watchdog: Watchdog
) -> dict[str, Any]:
    """Trains, evaluates and saves; returns the summary."""
    preemption = Preemption(context, stop_request)
    evaluator = Evaluator(context, tracker, preemption, watchdog)
    checkpointer = Checkpointer(context, tracker, evaluator, preemption, watchdog)
    metrics = MetricsLogger(context, tracker)
    progress = TrainingProgress(context.group.is_main, context.schedule_of(state).total_steps, state.step)
    # Their order matters: metrics of a step precede its evaluation, which the progress bar shows the outcome of; ranks
    # are compared before they agree to save, and a phase is evaluated before its checkpoint is saved.
    callbacks = (
        metrics,
        EarlyStopping(context, evaluator),
        ProgressBar(progress, metrics),
        ReplicaCheck(context),
        preemption,
        evaluator,
        checkpointer,
    )
    try:
        try:
            TransferLearningTrainer(context, state, callbacks).fit()
        finally:
            progress.close()
        # The last phase boundary: nothing trains any more, and the ranks compare their final parameters.
        context.engine.enter_phase("the end", ())
        if state.nonfinite_total:
            skipped, done = state.nonfinite_total, state.step
            logger.warning("%s of %s steps were skipped: their gradient was not finite", skipped, done)
        summary = summarize(context, state, evaluator.evaluate_end())
    except Interrupted:
        checkpointer.save()
        raise
    with watchdog.suspended("saving the model"):
        save_results(context, state, summary, tracker)
    return summary
