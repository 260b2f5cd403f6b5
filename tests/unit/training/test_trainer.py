"""The training step against plain torch, on a tiny encoder in float64."""

import copy
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, linear, relu

from mtl_dist.config.load import parse
from mtl_dist.config.recipe import Recipe
from mtl_dist.distributed.consistency import tensor_digest
from mtl_dist.errors import Interrupted, TrainingError
from mtl_dist.models.encoder import load_encoder, load_encoder_config
from mtl_dist.models.multitask import MultitaskTransformer, SentenceTransformer
from mtl_dist.train_state import TrainState
from mtl_dist.training import trainer as trainer_module
from mtl_dist.training.context import RunContext
from mtl_dist.training.step_result import StepResult
from mtl_dist.training.trainer import LayerwiseLearningRateTrainer, Stopwatch, dropout_seed
from tests.utils.in_process import setup_here
from tests.utils.tiny import TOPICS, tiny_recipe_file, tiny_tokenizer

TASKS = ("topic", "mood")
TOTAL_STEPS = 12
# Values that reveal errors: a batch size without divisors, a task weight, learning rates that differ by block and
# phase, a maximum norm that clips most steps but not all.
COMMON = ("model.dtype=float64", "batch_size=13", "tasks.mood.weight=2", "sampling.length_window=64")
RATES = ("optimizer.block_lr_decay=0.9", "optimizer.unfreeze_warmup_steps=2", "optimizer.weight_decay=0.1")
MAX_NORM = 2.0
BATCHES = ("mixed", "one_task")

Build = Callable[..., RunContext]


@pytest.fixture(scope="module")
def recipe_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_recipe_file(tmp_path_factory.mktemp("trainer"))


@pytest.fixture
def build(recipe_file: Path) -> Build:
    """Function that builds the context of a run of the tiny recipe in float64, with overrides."""

    def of(*overrides: str, accumulation: int = 1, precision: str = "no") -> RunContext:
        recipe = parse(["--config", str(recipe_file), *COMMON, *overrides]).recipe
        return setup_here(recipe, accumulation, precision)

    return of


def trained(setup: RunContext) -> Iterator[StepResult]:
    """Runs all phases and yields the result of each step."""
    trainer = LayerwiseLearningRateTrainer(setup, TrainState())
    for phase in setup.rates.schedule.phases:
        setup.engine.enter_phase(phase.name, phase.units)
        setup.engine.train_mode()
        for step in range(phase.start, phase.stop):
            yield trainer.training_step(step)


def trainer_in_phase(setup: RunContext, index: int) -> LayerwiseLearningRateTrainer:
    """Returns a trainer whose engine has entered the phase with this index."""
    phase = setup.rates.schedule.phases[index]
    setup.engine.enter_phase(phase.name, phase.units)
    setup.engine.train_mode()
    return LayerwiseLearningRateTrainer(setup, TrainState())


class Reference:
    """The same training in plain torch: one text at a time without padding, with explicit phases and learning rates."""

    def __init__(self, folder: Path, model: MultitaskTransformer) -> None:
        self.model = copy.deepcopy(model)
        self.tokenizer = tiny_tokenizer()
        self.rows: dict[str, list[dict[str, str | int]]] = {
            task: list(map(json.loads, (folder / "data" / f"{task}.train.json").read_text().splitlines()))
            for task in TASKS
        }
        self.optimizer = torch.optim.AdamW(
            [
                {"params": [parameter], "name": name, "weight_decay": 0.1 if parameter.ndim > 1 else 0.0}
                for name, parameter in self.model.named_parameters()
            ],
            foreach=False,
        )

    def task_loss(self, task: str, rows: np.ndarray) -> Tensor:
        """Returns the mean loss over `rows` of the task's training file."""
        weights = dict(self.model.heads[task].named_parameters())
        losses = []
        for row in rows:
            example = self.rows[task][row]
            tokens = self.tokenizer(str(example["text"]), return_tensors="pt", return_token_type_ids=False)
            vector = self.model.sentence_transformer.encoder(**tokens).last_hidden_state[0, 0]
            hidden = relu(linear(vector, weights["0.weight"], weights["0.bias"]))
            logits = linear(hidden, weights["3.weight"], weights["3.bias"])
            label = sorted(TOPICS).index(str(example["label"])) if task == "topic" else int(example["label"])
            losses.append(cross_entropy(logits, torch.tensor(label)))
        return torch.stack(losses).mean()

    def losses(self, step: int, setup: RunContext) -> dict[str, Tensor]:
        """Returns the mean loss of each task that occurs in the global batch of `step`."""
        batch = setup.sampler.batch(step)
        rows = {task: batch.rows[batch.pool_ids == index] for index, task in enumerate(TASKS)}
        return {task: self.task_loss(task, of_task) for task, of_task in rows.items() if len(of_task)}

    def step(self, step: int, setup: RunContext) -> tuple[dict[str, float], float]:
        """Carries out an optimizer step; returns the losses of the tasks and the gradient norm before clipping."""
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(unfrozen_at(name) <= step)
            parameter.grad = None
        losses = self.losses(step, setup)
        total = sum(loss * {"topic": 1.0, "mood": 2.0}[task] for task, loss in losses.items())
        assert isinstance(total, Tensor)
        total.backward()
        norm = nn.utils.clip_grad_norm_([p for p in self.model.parameters() if p.grad is not None], MAX_NORM)
        for group in self.optimizer.param_groups:
            group["lr"] = rate(group["name"], step)
        self.optimizer.step()
        return {task: loss.item() for task, loss in losses.items()}, norm.item()


def block_of(name: str) -> int | None:
    """Returns the number of the block that a parameter of the tiny BERT belongs to."""
    return int(name.split(".layer.")[1].split(".")[0]) if ".layer." in name else None


def unfrozen_at(name: str) -> int:
    """Returns the first step at which a parameter trains: heads, then blocks 2 and 3, then all, for four steps each."""
    if name.startswith("heads."):
        return 0
    return 4 if block_of(name) in (2, 3) else 8


def rate(name: str, step: int) -> float:
    """Returns the learning rate: warm-up over 2 steps, linear decay to 0, and 2 steps of warm-up after unfreezing."""
    run = step / 2 if step < 2 else 1 - (step - 2) / (TOTAL_STEPS - 2)
    unfreeze_warmup = min(1.0, (step - unfrozen_at(name)) / 2) if unfrozen_at(name) else 1.0
    block = block_of(name)
    unit = 5.0 if name.startswith("heads.") else 0.9 ** (4 if block is None else 3 - block)
    return 1e-3 * run * unfreeze_warmup * unit


def distance(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> float:
    """Returns the largest relative difference among the weights of two models."""
    assert ours.keys() == theirs.keys()
    return max(
        float(torch.dist(value, theirs[name].detach()) / torch.linalg.vector_norm(theirs[name].detach()))
        for name, value in ours.items()
    )


def plain_model(recipe: Recipe) -> MultitaskTransformer:
    """Returns the initial model of a run of `recipe` without vocabulary trimming."""
    encoder = load_encoder(recipe.model, load_encoder_config(recipe.model))
    labels = {"topic": tuple(sorted(TOPICS)), "mood": ("0", "1", "2")}
    return MultitaskTransformer(SentenceTransformer(encoder), labels, seed=recipe.seed)


@pytest.mark.parametrize("batches", BATCHES)
def test_a_run_equals_plain_torch_with_any_accumulation(build: Build, recipe_file: Path, batches: str) -> None:
    overrides = (*RATES, f"optimizer.max_grad_norm={MAX_NORM}", f"sampling.batches={batches}")
    setup = build(*overrides)
    reference = Reference(recipe_file.parent, plain_model(setup.recipe))
    expected = [reference.step(step, setup) for step in range(TOTAL_STEPS)]
    norms = [norm for _, norm in expected]
    assert min(norms) < MAX_NORM < max(norms)  # else clipping, or its absence, is not seen
    for accumulation in (1, 2, 4):
        setup = build(*overrides, accumulation=accumulation)
        for result, (losses, norm) in zip(trained(setup), expected, strict=True):
            assert result.losses.tolist() == pytest.approx([losses.get(task, 0.0) for task in TASKS], rel=1e-9)
            assert result.gradient_norm == pytest.approx(norm, rel=1e-9)
        assert distance(setup.engine.weights(), dict(reference.model.named_parameters())) < 1e-9


def test_micro_batch_size_changes_only_the_partition(build: Build) -> None:
    whole, small = build(), build("micro_batch_size=3")
    assert (whole.micro_steps, small.micro_steps) == (1, 5)
    for one, other in zip(trained(whole), trained(small), strict=True):
        assert other.losses.tolist() == pytest.approx(one.losses.tolist(), rel=1e-9)
    assert distance(small.engine.weights(), whole.engine.weights()) < 1e-9


def test_unfrozen_parameters_change_and_frozen_ones_keep_their_bytes(build: Build) -> None:
    setup = build("optimizer.warmup_steps=0", "optimizer.weight_decay=0")
    assert len(setup.rates.schedule.phases) == 3
    for index, phase in enumerate(setup.rates.schedule.phases):
        trainer = trainer_in_phase(setup, index)
        before = setup.engine.parameter_digests()
        trainer.training_step(phase.start)
        after = setup.engine.parameter_digests()
        moved = {name for name in before if after[name] != before[name]}
        assert moved == {name for name in before if unfrozen_at(name) <= phase.start}


def test_the_first_phase_trains_weights_and_biases_of_heads_only(build: Build) -> None:
    setup = build("optimizer.warmup_steps=0")
    before = copy.deepcopy(setup.engine.model)
    trainer_in_phase(setup, 0).training_step(0)
    names = [f"heads.{task}.{layer}.{kind}" for task in TASKS for layer in (0, 3) for kind in ("weight", "bias")]
    after = dict(setup.engine.model.named_parameters())
    assert [name for name, value in before.named_parameters() if not torch.equal(value, after[name])] == names


def test_a_head_absent_from_the_batch_keeps_weights_and_optimizer_state(build: Build) -> None:
    setup = build("sampling.batches=one_task", "optimizer.warmup_steps=0", "phases.2.steps=8")
    model, state = setup.engine.model, setup.engine.optimizer.state
    start = setup.rates.schedule.phases[2].start
    trainer = trainer_in_phase(setup, 2)
    seen: set[str] = set()
    untouched = 0
    for step in range(start, start + 8):
        counts = dict(zip(TASKS, setup.sampler.batch(step).counts, strict=True))
        absent = next(task for task in TASKS if not counts[task])
        parameters = list(model.heads[absent].parameters())
        before = [(p.clone(), copy.deepcopy(dict(state[p]))) for p in parameters if p in state]
        trainer.training_step(step)
        if absent in seen:
            assert len(before) == 4  # weights and biases of two layers have optimizer state
            for parameter, (value, kept_state) in zip(parameters, before, strict=True):
                assert torch.equal(parameter, value)
                assert all(torch.equal(state[parameter][key], kept_state[key]) for key in kept_state)
            untouched += 1
        seen.add(next(task for task in TASKS if counts[task]))
    assert untouched >= 6
    assert seen == set(TASKS)


def test_a_phase_may_train_a_head_that_a_batch_lacks(build: Build) -> None:
    """Such a step changes nothing and raises no error."""
    setup = build("sampling.batches=one_task", "phases.0.train=[heads.mood]", "optimizer.warmup_steps=0")
    trainer = trainer_in_phase(setup, 0)
    step = next(step for step in range(4) if not setup.sampler.batch(step).counts[TASKS.index("mood")])
    before = setup.engine.parameter_digests()
    assert trainer.training_step(step).gradient_norm == 0.0
    assert setup.engine.parameter_digests() == before
    assert trainer.train_state == TrainState(step=step + 1)


def hidden_states(model: MultitaskTransformer, setup: RunContext) -> tuple[Tensor, ...]:
    """Returns the output of the embeddings and of each block for some training texts."""
    batch = setup.data.training_batch(np.zeros(6, dtype=np.int64), np.arange(6))
    with torch.no_grad():
        encoder = model.sentence_transformer.encoder
        return encoder(batch.input_ids, batch.attention_mask, output_hidden_states=True).hidden_states


@pytest.mark.parametrize(("phase", "still"), [(0, 5), (1, 3), (2, 0)])
def test_frozen_modules_have_no_dropout_and_unfrozen_ones_do(build: Build, phase: int, still: int) -> None:
    setup = build("model.encoder_dropout=0.5")
    trainer = trainer_in_phase(setup, phase)
    model = setup.engine.model
    training = hidden_states(model, setup)
    with setup.engine.evaluating():
        expected = hidden_states(model, setup)
    again = hidden_states(model, setup)  # the training mode is restored after an evaluation
    trainer.training_step(setup.rates.schedule.phases[phase].start)
    for states in (training, again):
        same = [torch.equal(state, other) for state, other in zip(states, expected, strict=True)]
        assert same == [True] * still + [False] * (5 - still)


def test_dropout_of_a_step_is_a_function_of_seed_and_step(build: Build) -> None:
    """A run that resumes from a checkpoint has no state of a random generator to restore."""
    overrides = ("model.dropout=0.5", "model.encoder_dropout=0.5")
    results = []
    for stray in (1, 2):
        setup = build(*overrides, accumulation=2)
        torch.manual_seed(stray)
        results.append(trainer_in_phase(setup, 2).training_step(8).losses.tolist())
        assert torch.initial_seed() == dropout_seed(setup.recipe.seed, 8, 0, 1)  # of the last micro-step
    assert results[0] == results[1]
    assert results[0] != trainer_in_phase(build(), 2).training_step(8).losses.tolist()


def test_dropout_seeds_differ_by_seed_step_rank_and_micro_step() -> None:
    keys = [(seed, step, rank, micro) for seed in (1, 11) for step in (1, 11) for rank in (0, 1) for micro in (0, 1)]
    seeds = {dropout_seed(*key) for key in keys}
    assert len(seeds) == len(keys)
    assert all(0 <= seed < 2**63 for seed in seeds)


def poison(setup: RunContext, task: str) -> None:
    """Sets one weight of a head to infinity."""
    with torch.no_grad():
        dict(setup.engine.model.named_parameters())[f"heads.{task}.0.weight"][0, 0] = torch.inf


def snapshot(setup: RunContext) -> tuple[dict[str, str], dict[str, str]]:
    """Returns digests of all parameters and of the optimizer state."""
    state = setup.engine.optimizer_state()
    return setup.engine.parameter_digests(), {name: tensor_digest(name, value) for name, value in state.items()}


def test_a_step_without_a_finite_gradient_is_skipped_and_counted(build: Build) -> None:
    setup = build("sampling.batches=one_task", "optimizer.warmup_steps=0", "phases.0.steps=12")
    trainer = trainer_in_phase(setup, 0)
    for step in range(4):
        trainer.training_step(step)
    poison(setup, "topic")
    skipped = 0
    for step in range(4, 12):
        before = snapshot(setup)
        result = trainer.training_step(step)
        bad = bool(result.batch.counts[TASKS.index("topic")])
        skipped += bad
        assert bad == (not np.isfinite(result.gradient_norm))
        assert bad == (snapshot(setup) == before)
        assert trainer.train_state.nonfinite_total == skipped
        assert bool(trainer.train_state.nonfinite_in_row) == bad
        assert trainer.train_state.step == step + 1
    assert 0 < skipped < 8


def test_too_many_steps_in_a_row_without_a_finite_gradient_end_the_run(build: Build) -> None:
    setup = build("optimizer.max_nonfinite_steps=3")
    trainer = trainer_in_phase(setup, 0)
    poison(setup, "mood")
    trainer.training_step(0)
    trainer.training_step(1)
    before = snapshot(setup)
    with pytest.raises(TrainingError) as error:
        trainer.training_step(2)
    assert str(error.value) == (
        "the gradient was not finite in 3 steps in a row (optimizer.max_nonfinite_steps);"
        " lower optimizer.lr, or look at the data of these steps"
    )
    assert snapshot(setup) == before


def test_bf16_computes_in_bf16_in_every_phase_and_keeps_weights_in_fp32(build: Build) -> None:
    setup = build("model.dtype=float32", precision="bf16")
    plain = build("model.dtype=float32")
    seen: list[torch.dtype] = []
    block = setup.engine.model.get_submodule("sentence_transformer.encoder.encoder.layer.0.intermediate.dense")
    block.register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    for result, exact in zip(trained(setup), trained(plain), strict=True):
        assert result.losses.tolist() != exact.losses.tolist()
        assert result.losses.tolist() == pytest.approx(exact.losses.tolist(), rel=0.05)
    assert seen == [torch.bfloat16] * TOTAL_STEPS
    assert {parameter.dtype for parameter in setup.engine.model.parameters()} == {torch.float32}
    # Evaluation too, which uses the model without its wrapping.
    batch = setup.data.evaluation_batch(setup.data.sets[0], "test", np.arange(2))
    with setup.engine.evaluating():
        logits = setup.engine.logits(batch)["topic"]
    assert seen[TOTAL_STEPS:] == [torch.bfloat16]
    assert logits.dtype == torch.float32


def test_a_stopwatch_leaves_out_what_an_exception_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """A signal during an evaluation must not count the evaluation as training time."""
    clock = [0.0]
    monkeypatch.setattr(trainer_module, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    watch = Stopwatch()
    clock[0] = 1.0

    def evaluate() -> None:
        with watch.stopped():
            clock[0] = 100.0
            raise Interrupted

    with pytest.raises(Interrupted):
        evaluate()
    assert watch.seconds == 1.0
