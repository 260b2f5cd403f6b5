"""Trimmed token embeddings give the results of whole ones, and unused rows are kept and decay."""

from pathlib import Path
from typing import cast

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PreTrainedModel

from mtl_dist.config.load import parse
from mtl_dist.config.recipe import OptimizerConfig
from mtl_dist.engines import rank_comparison
from mtl_dist.engines.optimizer import adamw
from mtl_dist.errors import UserError
from mtl_dist.models.encoder import load_encoder, load_encoder_config
from mtl_dist.models.multitask import MultitaskTransformer
from mtl_dist.models.vocab_trimming import (
    PLACEHOLDER_TOKEN,
    TrimmedEmbedding,
    TrimmedEmbeddings,
    UnusedRows,
    trim_vocabulary,
    trimmed_size,
)
from mtl_dist.train_state import TrainState
from mtl_dist.training.context import RunContext
from mtl_dist.training.trainer import LayerwiseLearningRateTrainer
from tests.utils.in_process import run_here, setup_here, summary_of
from tests.utils.tiny import KINDS, UNUSED, tiny_config, tiny_recipe_file

VOCABULARY = np.array([2, 3, 7, 8, 9, 20, 41, 60])
PAD = 1
TABLE = "sentence_transformer.encoder.embeddings.word_embeddings.weight"


@pytest.fixture(scope="module")
def recipe_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_recipe_file(tmp_path_factory.mktemp("vocabulary"))


def encoder_of(kind: str, pad: int = PAD) -> PreTrainedModel:
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **(tiny_config(kind) | {"pad_token_id": pad}))
    return AutoModel.from_config(config).eval()


def table_of(encoder: PreTrainedModel) -> TrimmedEmbedding:
    """The token embeddings, whether they are trimmed or not."""
    return cast(TrimmedEmbedding, encoder.get_input_embeddings())


def texts() -> tuple[Tensor, Tensor]:
    """Token ids and mask of five texts of different lengths."""
    ids = torch.from_numpy(np.random.default_rng(0).choice(VOCABULARY, (5, 9)))
    mask = (torch.arange(9) < torch.tensor([9, 3, 5, 1, 8])[:, None]).long()
    return torch.where(mask.bool(), ids, PAD), mask


@pytest.mark.parametrize("kind", KINDS)
def test_a_trimmed_encoder_has_the_same_states_and_gradients(kind: str) -> None:
    """Bit for bit, including padding."""
    whole, part = encoder_of(kind), encoder_of(kind)
    trim_vocabulary(part, VOCABULARY)
    ids, mask = texts()
    states = [encoder(ids, attention_mask=mask).last_hidden_state for encoder in (whole, part)]
    assert torch.equal(*states)
    for one in states:
        one.square().sum().backward()  # also of padding, which must not get a gradient
    gradients = [{name: value.grad for name, value in one.named_parameters()} for one in (whole, part)]
    assert gradients[0].keys() == gradients[1].keys()
    used = [PAD, *VOCABULARY]
    for name, gradient in gradients[0].items():
        if gradient is not None:
            in_use = gradient[used] if whole.get_parameter(name) is table_of(whole).weight else gradient
            mine = gradients[1][name]
            assert mine is not None
            assert torch.equal(in_use, mine), name
    assert trimmed_size(part) == (len(used), table_of(whole).num_embeddings)
    assert trimmed_size(whole) is None


def test_the_id_of_an_unused_row_raises() -> None:
    encoder = encoder_of("bert", pad=0)
    trim_vocabulary(encoder, VOCABULARY)
    for token in (PLACEHOLDER_TOKEN, 0, *VOCABULARY):
        encoder(torch.tensor([[int(token)]]))
    with pytest.raises(IndexError):
        encoder(torch.tensor([[4]]))


def test_a_token_that_the_encoder_does_not_have_is_refused_by_name() -> None:
    encoder = encoder_of("bert")
    rows = table_of(encoder).num_embeddings
    with pytest.raises(UserError, match=f"model.encoder: its tokenizer has a token {rows}, and the encoder has {rows}"):
        trim_vocabulary(encoder, np.array([2, rows]))


def test_embeddings_that_may_be_read_directly_are_not_trimmed() -> None:
    own_code, other_table, other_norm, by_frequency, sparse = (encoder_of("bert") for _ in range(5))
    own_code.config.auto_map = {"AutoModel": "code.Model"}
    table = table_of(other_table)
    other_table.set_input_embeddings(type("Special", (nn.Embedding,), {})(table.num_embeddings, 16))
    table_of(other_norm).max_norm = 1.0
    table_of(by_frequency).scale_grad_by_freq = True
    table_of(sparse).sparse = True
    for encoder in (own_code, other_table, other_norm, by_frequency, sparse):
        before = table_of(encoder)
        trim_vocabulary(encoder, VOCABULARY)
        assert table_of(encoder) is before
        assert not isinstance(before, TrimmedEmbedding)
        assert len(before.weight) == before.num_embeddings == table.num_embeddings


def test_expand_and_select_used_are_inverse() -> None:
    table = torch.randn(10, 3, generator=torch.Generator().manual_seed(1))
    used = torch.tensor([0, 4, 5, 9])
    unused_rows = UnusedRows(table, used)
    assert torch.equal(unused_rows.expand(table[used]), table)
    moved = unused_rows.expand(2 * table[used])
    unused = [1, 2, 3, 6, 7, 8]
    assert torch.equal(moved[used], 2 * table[used])
    assert torch.equal(moved[unused], table[unused])
    assert torch.equal(unused_rows.select_used(moved), 2 * table[used])
    moment = unused_rows.expand_optimizer_state(table[used])
    assert torch.equal(moment[used], table[used])
    assert not moment[unused].any()


def test_unused_rows_decay_as_with_adamw() -> None:
    """Without a step whose gradient is not finite, which AdamW skips."""
    table = torch.randn(10, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    used = torch.tensor([0, 4, 5, 9])
    unused_rows, parameter = UnusedRows(table, used), nn.Parameter(table.clone())
    optimizer = adamw([{"params": [parameter]}], OptimizerConfig(weight_decay=0.3))
    for rate, norm in ((0.1, 2.0), (0.2, float("inf")), (0.05, 1.0), (0.3, float("nan"))):
        unused_rows.decay(1 - rate * 0.3, torch.tensor(norm))
        if np.isfinite(norm):
            optimizer.param_groups[0] |= {"lr": rate, "weight_decay": 0.3}
            parameter.grad = torch.zeros_like(table)
            parameter.grad[used] = 1.0
            optimizer.step()
    torch.testing.assert_close(unused_rows.expand(parameter.detach()[used]), parameter.detach(), rtol=1e-14, atol=0)
    assert unused_rows.decay_factor == (1 - 0.1 * 0.3) * (1 - 0.05 * 0.3)


def trained(recipe_file: Path, *overrides: str) -> RunContext:
    """Trains the last phase, in which nothing is frozen."""
    arguments = ["--config", str(recipe_file), "optimizer.warmup_steps=0", "optimizer.weight_decay=0.1", *overrides]
    setup = setup_here(parse(arguments).recipe)
    phase = setup.rates.schedule.phases[-1]
    setup.engine.enter_phase(phase.name, phase.units)
    setup.engine.train_mode()
    trainer = LayerwiseLearningRateTrainer(setup, TrainState())
    for step in range(phase.start, phase.stop):
        trainer.training_step(step)
    return setup


def test_an_engine_saves_untrimmed_tensors_and_loads_them(recipe_file: Path) -> None:
    """Bit for bit, including the decay factor, which is part of the state."""
    first, second = trained(recipe_file), trained(recipe_file, "seed=7", "optimizer.lr=3e-3")
    weights, optimizer_state = first.engine.weights(), first.engine.optimizer_state()
    original = load_encoder(first.recipe.model, load_encoder_config(first.recipe.model))
    table = table_of(original).weight.detach()
    assert (
        weights[TABLE].shape
        == optimizer_state[f"exp_avg/{TABLE}"].shape
        == first.engine.parameter_templates[TABLE].shape
        == table.shape
    )
    left = optimizer_state[f"decay/{TABLE}"]
    assert 0.99 < left < 1
    assert torch.equal(weights[TABLE][-UNUSED:], table[-UNUSED:] * float(left))
    assert not optimizer_state[f"exp_avg/{TABLE}"][-UNUSED:].any()
    assert optimizer_state[f"exp_avg/{TABLE}"].any()
    held = dict(first.engine.model.named_parameters())[TABLE]
    assert len(held) <= len(table) - UNUSED
    assert first.engine.parameter_digests() != second.engine.parameter_digests()
    second.engine.load(weights, optimizer_state)
    assert first.engine.parameter_digests() == second.engine.parameter_digests()
    assert first.engine.optimizer_state_digests() == second.engine.optimizer_state_digests()
    assert second.engine.optimizer_state()[f"decay/{TABLE}"] == left


def test_ranks_compare_unused_rows_and_their_decay(recipe_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[dict[str, str]] = []
    monkeypatch.setattr(rank_comparison, "require_equal", lambda processes, when, digests: compared.append(digests))
    setup = trained(recipe_file)
    setup.engine.check_equal("now")
    assert compared[-1][f"the decay of {TABLE}"] == repr(float(setup.engine.optimizer_state()[f"decay/{TABLE}"]))
    table_of(setup.engine.model.sentence_transformer.encoder).unused_rows.rows[0, 0] += 1e-6
    setup.engine.check_equal("later")
    differ = [name for name, digest in compared[-1].items() if compared[-2][name] != digest]
    assert differ == [f"rows of {TABLE} that no text uses"]


def test_a_checkpoint_of_another_encoder_is_refused(recipe_file: Path) -> None:
    """Unused rows are not loaded but compared with those of the encoder; if they differ, nothing is loaded."""
    setup = trained(recipe_file)
    weights, optimizer_state = setup.engine.weights(), setup.engine.optimizer_state()
    setup.engine.load(weights, optimizer_state)
    before = setup.engine.parameter_digests()
    others = {name: 2 * value for name, value in weights.items()}
    others[TABLE][:-1] = weights[TABLE][:-1]
    with pytest.raises(UserError, match=f"^model.encoder: rows of {TABLE} that no text uses are not those in the chec"):
        setup.engine.load(others, optimizer_state)
    undecayed = {name: value for name, value in optimizer_state.items() if not name.startswith("decay/")}
    with pytest.raises(UserError, match=r"^model\.encoder: "):
        setup.engine.load(weights, undecayed)
    assert setup.engine.parameter_digests() == before


def test_frozen_embeddings_do_not_decay(recipe_file: Path) -> None:
    setup = trained(recipe_file, "phases=[{name: upper, train: [heads, 'blocks[-2:]'], steps: 4}]")
    assert f"decay/{TABLE}" not in setup.engine.optimizer_state()
    assert setup.engine.optimizer_state()


def test_a_saved_model_has_every_row(tmp_path: Path) -> None:
    recipe = parse(["--config", str(tiny_recipe_file(tmp_path)), "checkpoint.every_steps=4"]).recipe
    run_here(recipe)
    saved = MultitaskTransformer.from_pretrained(tmp_path / "run/model").sentence_transformer.encoder
    original = load_encoder(recipe.model, load_encoder_config(recipe.model))
    before, after = (table_of(one).weight.detach()[-UNUSED:] for one in (original, saved))
    assert len(table_of(saved).weight) == len(table_of(original).weight) == saved.config.vocab_size
    left = after / before
    torch.testing.assert_close(left, left[:1, :1].expand_as(left))
    assert 0.9 < float(left[0, 0]) < 1
    whole = MultitaskTransformer.from_pretrained(tmp_path / "run/model").parameters()
    in_use = setup_here(recipe).engine.model.parameters()
    trained = summary_of(tmp_path / "run")["phases"][-1]["trainable_parameters"]
    assert trained == sum(one.numel() for one in in_use) <= sum(one.numel() for one in whole) - UNUSED * 16


def test_meta_tensors_have_untrimmed_shapes() -> None:
    encoder = encoder_of("bert")
    like = TrimmedEmbeddings(encoder).meta_like(encoder)
    trim_vocabulary(encoder, VOCABULARY)
    tables = TrimmedEmbeddings(encoder)
    assert {name: (one.shape, one.dtype) for name, one in tables.meta_like(encoder).items()} == {
        name: (one.shape, one.dtype) for name, one in like.items()
    }
    assert tables.decay_state() == {}
