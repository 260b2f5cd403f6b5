"""Results of a finished run: the model with its card, the summary and the report."""

import json
import logging
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor

from mtl_dist.distributed.consistency import combined_digest
from mtl_dist.errors import TrainingError, UserError, root_cause
from mtl_dist.io import atomic_folder, valid_json, write_text_atomically
from mtl_dist.models.model_card import CARD, run_card
from mtl_dist.report.page import write_report
from mtl_dist.run_layout import MODEL, SUMMARY
from mtl_dist.tasks.classification import ClassificationMetrics
from mtl_dist.tracking.tracker import Tracker
from mtl_dist.train_state import NONDETERMINISTIC_FIELDS, TrainState
from mtl_dist.training.context import RunContext
from mtl_dist.training.evaluation import flat_metrics
from mtl_dist.training.run_metadata import versions

logger = logging.getLogger(__name__)


def summarize(context: RunContext, state: TrainState, test: Mapping[str, ClassificationMetrics]) -> dict[str, Any]:
    """Returns the content of summary.json, with the metrics `test` of the test split. Every rank calls this."""
    engine = context.engine
    by_rank = context.group.all_gather(combined_digest(engine.parameter_digests()))
    return {
        **flat_metrics(test, "test"),
        "steps": state.step,
        "tasks": {
            task: {
                "rows": {split: source.rows(split) for split in source.class_counts},
                "missing": dict(source.missing),
            }
            for task, source in context.data.tasks.items()
        },
        "phases": [
            {
                "name": phase.name,
                "steps": phase.steps,
                "seconds": state.phase_seconds.get(phase.name, 0.0),
                "trainable_parameters": sum(context.unit_sizes[unit] for unit in phase.units),
                "draws": context.draws_by_task(phase.start, phase.stop),
            }
            for phase in context.schedule_of(state).phases
        ],
        "nonfinite_steps": state.nonfinite_total,
        "world_size": context.group.world_size,
        "engine": engine.name,
        "mixed_precision": engine.accelerator.mixed_precision,
        "params_sha256": by_rank[0],
        "params_sha256_by_rank": by_rank,
        "state_sha256": _state_digest(context, state),
        "digests": dict(context.digests),
        "versions": versions(),
    }


def _state_digest(context: RunContext, state: TrainState) -> str:
    """One SHA-256 over parameters, optimizer state and TrainState, without what differs between equal runs."""
    counters = {key: value for key, value in asdict(state).items() if key not in NONDETERMINISTIC_FIELDS}
    engine = context.engine
    return combined_digest({**engine.parameter_digests(), **engine.optimizer_state_digests(), "": json.dumps(counters)})


def save_results(context: RunContext, state: TrainState, summary: Mapping[str, Any], tracker: Tracker) -> None:
    """Writes model, summary and report; every rank calls this. Raises TrainingError where the disk refuses."""
    folder, group = Path(context.recipe.output_dir), context.group
    weights = context.engine.weights()
    group.on_main_process(lambda: save_model(context, folder / MODEL, weights, summary))
    tracker.log_artifact("model", folder / MODEL, state.step)
    group.on_main_process(lambda: write_summary(folder, summary))
    group.on_main_process(lambda: _write_report(folder))
    logger.info("model, metrics and summary are in %s", folder)


def save_model(context: RunContext, folder: Path, weights: dict[str, Tensor], summary: Mapping[str, Any]) -> None:
    """Writes `weights`, by parameter name, with tokenizer and model card to `folder`. Called by one rank."""
    with atomic_folder(folder) as partial:
        context.engine.model.save_pretrained(partial, weights)
        context.data.tokenizer.save_pretrained(partial)
        card = run_card(context.recipe, context.engine.model.labels, summary)
        (partial / CARD).write_text(card, encoding="utf-8")


def write_summary(folder: Path, summary: Mapping[str, Any]) -> None:
    """Writes summary.json, whose presence says that the run is finished; a figure that is not finite is null."""
    write_text_atomically(folder / SUMMARY, valid_json(summary, indent=2) + "\n")


def _write_report(folder: Path) -> None:
    """Writes report.html. The run is finished without it: an error is logged and ends nothing."""
    try:
        write_report(folder)
    except Exception as error:  # noqa: BLE001 - a page that cannot be drawn must not make a finished run fail
        words = str(error) if isinstance(error, UserError | TrainingError) else root_cause(error)
        logger.warning("the run is finished, its report is not: %s", " ".join(words.split()))
