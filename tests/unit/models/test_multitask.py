"""MultitaskTransformer against a plain reference: one text at a time, without padding, heads written out."""

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.functional import linear, relu
from transformers import AutoConfig, AutoModel, AutoTokenizer

from mtl_dist.config.recipe import ModelConfig
from mtl_dist.errors import UserError
from mtl_dist.models.encoder import find_encoder_layout, load_encoder, load_encoder_config
from mtl_dist.models.multitask import MultitaskTransformer, SentenceTransformer
from tests.utils.hostile import pickled, with_code, with_pickled_weights
from tests.utils.tiny import KINDS, MOODS, SPECIAL, TOPICS, WORDS, tiny_config, tiny_encoder, tiny_tokenizer

LABELS = {"topic": TOPICS, "mood": MOODS}
Dtype = Literal["float32", "float64"]
LAYERS = 3
HIDDEN = 16
PAD = SPECIAL.index("[PAD]")
LENGTHS = (7, 3, 12, 5, 2, 9)
NAMES = ("mood", "topic", "topic", "mood", "topic", "mood")
"""The task of each row of `texts`."""


def model_of(
    folder: Path, kind: str = "bert", *, pooling: str = "first_token", dropout: float = 0.0, dtype: Dtype = "float64"
) -> MultitaskTransformer:
    """A tiny model in eval mode; its encoder is saved in `folder`."""
    settings = ModelConfig(
        encoder=str(tiny_encoder(folder, kind, layers=LAYERS)),
        encoder_dropout=dropout,
        dtype=dtype,
    )
    encoder = load_encoder(settings, load_encoder_config(settings))
    return MultitaskTransformer(SentenceTransformer(encoder, pooling, dropout), LABELS, dropout).eval()


@pytest.fixture(params=KINDS)
def model(request: pytest.FixtureRequest, tmp_path: Path) -> MultitaskTransformer:
    """One of each kind, in float64, without dropout."""
    return model_of(tmp_path, request.param)


def texts(*lengths: int) -> list[Tensor]:
    """Rows of token ids, of these lengths."""
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(len(SPECIAL), len(SPECIAL) + len(WORDS), (n,), generator=generator) for n in lengths]


def padded(rows: list[Tensor], extra: int = 0) -> tuple[Tensor, Tensor]:
    """`input_ids` and `attention_mask`, `extra` tokens longer than the longest row."""
    shape = (len(rows), max(map(len, rows)) + extra)
    input_ids = torch.full(shape, PAD)
    attention_mask = torch.zeros(shape, dtype=torch.long)
    for index, row in enumerate(rows):
        input_ids[index, : len(row)] = row
        attention_mask[index, : len(row)] = 1
    return input_ids, attention_mask


def plain_logits(model: MultitaskTransformer, row: Tensor, task: str) -> Tensor:
    """Logits [num_labels] of one text, from the encoder's own output and the head's weights."""
    encoder = model.sentence_transformer.encoder
    tokens = encoder(input_ids=row[None], attention_mask=torch.ones_like(row[None])).last_hidden_state[0]
    vector = tokens[0] if model.sentence_transformer.pooling == "first_token" else tokens.mean(dim=0)
    weights = {name: value for name, value in model.named_parameters() if name.startswith(f"heads.{task}.")}
    hidden = relu(linear(vector, weights[f"heads.{task}.0.weight"], weights[f"heads.{task}.0.bias"]))
    return linear(hidden, weights[f"heads.{task}.3.weight"], weights[f"heads.{task}.3.bias"])


@pytest.mark.parametrize("pooling", ["first_token", "mean"])
def test_logits_equal_those_of_each_text_alone(model: MultitaskTransformer, pooling: str) -> None:
    """For every form of the argument `task`, and with additional padding."""
    model.sentence_transformer.pooling = pooling
    rows = texts(*LENGTHS)
    expected = {
        task: torch.stack(
            [plain_logits(model, row, task) for row, name in zip(rows, NAMES, strict=True) if name == task]
        )
        for task in LABELS
    }
    task_rows = {task: torch.tensor([row for row, name in enumerate(NAMES) if name == task]) for task in LABELS}
    for extra in (0, 5):
        batch = padded(rows, extra)
        by_name, by_rows = model(*batch, NAMES), model(*batch, task_rows)
        assert list(by_name) == ["mood", "topic"]  # as they first occur
        assert list(by_rows) == ["topic", "mood"]
        for task, wanted in expected.items():
            # DeBERTa's LayerNorm computes in float32.
            torch.testing.assert_close(by_name[task], wanted, rtol=1e-5, atol=1e-6)
            assert torch.equal(by_name[task], by_rows[task])
            torch.testing.assert_close(model(*batch, task)[task_rows[task]], by_name[task], rtol=1e-9, atol=1e-12)


def test_a_task_without_rows_has_empty_logits_with_a_gradient(tmp_path: Path) -> None:
    """DDP waits for the gradients of every head, also on a rank without rows of its task."""
    model = model_of(tmp_path)
    task_rows = {"topic": torch.arange(2), "mood": torch.empty(0, dtype=torch.long)}
    logits = model(*padded(texts(4, 6)), task_rows)
    assert logits["mood"].shape == (0, len(MOODS))
    torch.cat([one.flatten() for one in logits.values()]).sum().backward()
    assert all(
        parameter.grad is not None and not parameter.grad.any() for parameter in model.heads["mood"].parameters()
    )
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in model.heads["topic"].parameters())


def test_token_types_reach_the_encoder(tmp_path: Path) -> None:
    model = model_of(tmp_path)
    batch = padded(texts(8, 8))
    types = torch.zeros_like(batch[0])
    assert torch.equal(model(*batch, "topic", types), model(*batch, "topic"))
    types[:, 4:] = 1
    assert not torch.allclose(model(*batch, "topic", types), model(*batch, "topic"))
    torch.testing.assert_close(model(*batch, NAMES[:2], types)["topic"], model(*batch, "topic", types)[1:])


def test_an_unknown_task_is_an_error(tmp_path: Path) -> None:
    model = model_of(tmp_path)
    for task in ("topics", ["topic", "topics"], {"topics": torch.arange(2)}):
        with pytest.raises(KeyError, match="topics"):
            model(*padded(texts(3, 3)), task)


def test_a_wrong_number_of_task_names_is_refused(tmp_path: Path) -> None:
    model = model_of(tmp_path)
    with pytest.raises(ValueError, match=r"^2 names of tasks for 3 rows$"):
        model(*padded(texts(3, 3, 3)), ["topic", "mood"])


def test_another_pooling_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^pooling: 'max' is not one of first_token, mean$"):
        SentenceTransformer(AutoModel.from_pretrained(tiny_encoder(tmp_path)), "max")


def test_an_encoder_from_automodel_is_accepted(tmp_path: Path) -> None:
    """With the pooler that `AutoModel` adds."""
    encoder = AutoModel.from_pretrained(tiny_encoder(tmp_path))
    assert encoder.pooler is not None
    model = MultitaskTransformer(SentenceTransformer(encoder), LABELS)
    assert not [name for name, _ in model.named_parameters() if "pooler" in name]
    assert model.sentence_transformer.dropout.p == 0.1
    assert model.sentence_transformer.pooling == "first_token"


def test_heads_are_linear_relu_dropout_linear_with_biases(tmp_path: Path) -> None:
    model = model_of(tmp_path, dropout=0.3)
    assert model.sentence_transformer.dropout.p == 0.3
    for task, labels in LABELS.items():
        first, activation, dropout, last = model.heads[task].children()
        assert [type(layer) for layer in (first, activation, dropout, last)] == [
            nn.Linear,
            nn.ReLU,
            nn.Dropout,
            nn.Linear,
        ]
        assert isinstance(dropout, nn.Dropout)
        assert dropout.p == 0.3
        shapes = {name: tuple(parameter.shape) for name, parameter in model.heads[task].named_parameters()}
        assert shapes == {
            "0.weight": (HIDDEN, HIDDEN),
            "0.bias": (HIDDEN,),
            "3.weight": (len(labels), HIDDEN),
            "3.bias": (len(labels),),
        }


def heads_of(folder: Path, labels: dict[str, tuple[str, ...]], seed: int, dtype: torch.dtype) -> dict[str, Tensor]:
    torch.manual_seed(torch.seed() % 1000)  # independent of the random state of the process
    encoder = AutoModel.from_pretrained(folder, dtype=dtype)
    return MultitaskTransformer(SentenceTransformer(encoder), labels, seed=seed).heads.state_dict()


def test_initial_weights_of_a_head_depend_on_seed_and_name_only(tmp_path: Path) -> None:
    tiny_encoder(tmp_path)
    topic = heads_of(tmp_path, {"topic": TOPICS}, 1, torch.float32)
    more = heads_of(tmp_path, {"mood": MOODS, "topic": TOPICS, "extra": TOPICS}, 1, torch.float32)
    assert all(torch.equal(more[name], value) for name, value in topic.items())
    assert not any(torch.equal(more[name.replace("topic", "extra")], value) for name, value in topic.items())
    other_seed = heads_of(tmp_path, {"topic": TOPICS}, 2, torch.float32)
    assert not any(torch.equal(other_seed[name], value) for name, value in topic.items())
    double = heads_of(tmp_path, {"topic": TOPICS}, 1, torch.float64)
    assert all(torch.equal(double[name], value.double()) for name, value in topic.items())


def test_heads_are_initialised_as_torchs_linear(tmp_path: Path) -> None:
    """Uniform within 1 / sqrt(inputs): the range is used up to its ends, and the mean is near zero."""
    heads = heads_of(tiny_encoder(tmp_path), {f"task{i}": TOPICS for i in range(20)}, 0, torch.float32)
    bound = HIDDEN**-0.5
    for layer in ("0.weight", "0.bias", "3.weight", "3.bias"):
        values = torch.cat([value.flatten() for name, value in heads.items() if name.endswith(layer)])
        assert bound * 0.9 < values.abs().max() <= bound
        assert abs(values.mean()) < 0.2 * bound


def test_units_are_in_canonical_order_and_contain_each_parameter_once(model: MultitaskTransformer) -> None:
    units = model.unit_parameters()
    assert list(units) == ["embeddings", *(f"blocks.{i}" for i in range(LAYERS)), "heads.topic", "heads.mood"]
    assert list(model.unit_modules()) == list(units)
    assert Counter(name for names in units.values() for name in names) == Counter(dict(model.named_parameters()).keys())
    assert [name.split(".")[:2] for name in units["heads.mood"]] == [["heads", "mood"]] * 4


def test_gradients_reach_every_parameter(model: MultitaskTransformer) -> None:
    logits = model(*padded(texts(*LENGTHS)), NAMES)
    torch.cat([one.logsumexp(dim=-1) for one in logits.values()]).sum().backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []


@pytest.mark.parametrize("units", [(), ("heads.mood",), ("blocks.2", "heads.topic"), ("embeddings",)])
def test_exactly_the_units_named_are_in_train_mode(tmp_path: Path, units: tuple[str, ...]) -> None:
    model = model_of(tmp_path, "modernbert").train()
    model.train_units(units)
    encoder = "sentence_transformer.encoder"
    places = {
        "heads.mood": ["heads.mood"],
        "heads.topic": ["heads.topic"],
        "blocks.2": [f"{encoder}.layers.2", f"{encoder}.final_norm"],
        "embeddings": [f"{encoder}.embeddings"],
    }
    prefixes = [place for unit in units for place in places[unit]] + ["sentence_transformer.dropout"] * bool(units)
    expected = {
        name
        for name, _ in model.named_modules()
        if any(name == prefix or name.startswith(f"{prefix}.") for prefix in prefixes)
    }
    assert {name for name, module in model.named_modules() if module.training} == expected


@pytest.mark.parametrize("kind", KINDS)
def test_only_unfrozen_units_have_dropout(tmp_path: Path, kind: str) -> None:
    model = model_of(tmp_path, kind, dropout=0.5)
    batch = padded(texts(6, 4))

    def states() -> list[Tensor]:
        """Output of the embeddings and of each block."""
        with torch.no_grad():
            return model.sentence_transformer.encoder(*batch, output_hidden_states=True).hidden_states

    expected = states()
    for unit, place in {"heads.topic": LAYERS + 1, "blocks.1": 2, "blocks.0": 1, "embeddings": 0}.items():
        model.train_units((unit,))
        same = [torch.equal(state, other) for state, other in zip(states(), expected, strict=True)]
        assert same == [True] * place + [False] * (LAYERS + 1 - place), unit


def logits_of(model: MultitaskTransformer) -> dict[str, Tensor]:
    with torch.no_grad():
        return model(*padded(texts(*LENGTHS)), NAMES)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_saved_model_is_loaded_bit_for_bit(tmp_path: Path, kind: str, dtype: Dtype) -> None:
    model = model_of(tmp_path / "encoder", kind, pooling="mean", dropout=0.25, dtype=dtype)
    saved = tmp_path / "model"
    model.train().save_pretrained(saved)
    tiny_tokenizer().save_pretrained(saved)
    again = MultitaskTransformer.from_pretrained(saved)
    assert not any(module.training for module in again.modules())
    assert again.labels == LABELS
    assert again.sentence_transformer.pooling == "mean"
    dropouts = [again.sentence_transformer.dropout, *(again.heads[task].get_submodule("2") for task in LABELS)]
    assert [dropout.p for dropout in dropouts if isinstance(dropout, nn.Dropout)] == [0.25] * 3
    expected = model.state_dict()
    assert again.state_dict().keys() == expected.keys()
    for name, value in again.state_dict().items():
        assert value.dtype == expected[name].dtype
        assert torch.equal(value, expected[name])
    model.eval()
    assert all(
        torch.equal(one, other) for one, other in zip(logits_of(model).values(), logits_of(again).values(), strict=True)
    )

    # Other libraries load the encoder alone.
    encoder, info = AutoModel.from_pretrained(saved, output_loading_info=True)
    assert [name for name in info["missing_keys"] if not name.startswith("pooler.")] == []
    batch = padded(texts(*LENGTHS))
    with torch.no_grad():
        states = [one(*batch).last_hidden_state for one in (encoder, model.sentence_transformer.encoder)]
    assert torch.equal(*states)
    tokenizer: Any = AutoTokenizer.from_pretrained(saved)
    assert tokenizer("cat1 sea2")["input_ids"] == tiny_tokenizer()("cat1 sea2")["input_ids"]


def test_an_encoder_that_was_cast_is_saved_in_its_type(tmp_path: Path) -> None:
    encoder = AutoModel.from_pretrained(tiny_encoder(tmp_path / "encoder")).double()
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.mul_(1 + 1e-12)
    model = MultitaskTransformer(SentenceTransformer(encoder), LABELS)
    model.save_pretrained(tmp_path / "model")
    again = MultitaskTransformer.from_pretrained(tmp_path / "model").state_dict()
    assert all(torch.equal(again[name], value) for name, value in model.state_dict().items())


def test_saving_does_not_change_the_models_configuration(tmp_path: Path) -> None:
    model = model_of(tmp_path / "encoder")
    before = model.sentence_transformer.encoder.config.to_dict()
    model.save_pretrained(tmp_path / "model")
    assert model.sentence_transformer.encoder.config.to_dict() == before
    written = json.loads((tmp_path / "model" / "config.json").read_text())
    assert written["architectures"] == ["BertModel"]
    assert written["mtl_dist"] == {
        "pooling": "first_token",
        "dropout": 0.0,
        "labels": {task: list(labels) for task, labels in LABELS.items()},
    }
    names = load_file(tmp_path / "model" / "model.safetensors").keys()
    assert {name.split(".")[0] for name in names} == {"bert", "heads"}


def test_a_folder_of_another_kind_of_model_is_refused(tmp_path: Path) -> None:
    folder = tiny_encoder(tmp_path / "encoder")
    with pytest.raises(UserError) as error:
        MultitaskTransformer.from_pretrained(folder)
    assert str(error.value) == f"{folder}: its config.json has no 'mtl_dist', so it is no MultitaskTransformer"
    with pytest.raises(OSError, match="nowhere"):
        MultitaskTransformer.from_pretrained(tmp_path / "nowhere")


HARMFUL: dict[str, tuple[Callable[[Path, Path], object], str]] = {
    "code for an unknown type": (
        lambda folder, mark: with_code(folder, mark, model_type="own"),
        "{}: cannot be loaded: The repository {} contains custom code",
    ),
    "code for a known type": (
        with_code,
        "{}: its config.json names code of its own (auto_map); trust_remote_code=True",
    ),
    "weights as a pickle": (
        with_pickled_weights,
        "{} has no model.safetensors; weights as pickle files are not read",
    ),
    "a pickle under the weights' name": (
        lambda folder, mark: (folder / "model.safetensors").write_bytes(pickled(mark)),
        "{}: model.safetensors cannot be read: ",
    ),
}


@pytest.mark.parametrize("harm", HARMFUL)
def test_a_folder_that_would_run_code_is_refused(tmp_path: Path, harm: str) -> None:
    do, expected = HARMFUL[harm]
    folder, mark = tmp_path / "model", tmp_path / "ran"
    model_of(tmp_path / "encoder").save_pretrained(folder)
    do(folder, mark)
    with pytest.raises(UserError) as error:
        MultitaskTransformer.from_pretrained(folder)
    assert str(error.value).startswith(expected.replace("{}", str(folder)))
    assert len(str(error.value).splitlines()) == 1
    assert not mark.exists()


def test_weights_that_are_incomplete_are_refused(tmp_path: Path) -> None:
    model_of(tmp_path / "encoder").save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    del weights["bert.encoder.layer.0.output.dense.bias"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError) as error:
        MultitaskTransformer.from_pretrained(tmp_path)
    expected = f"{tmp_path}: model.safetensors has no bert.encoder.layer.0.output.dense.bias (1 missing)"
    assert str(error.value) == expected


@pytest.mark.parametrize("name", ["type", "items", "training", "forward"])
def test_task_names_that_torch_uses_itself(tmp_path: Path, name: str) -> None:
    encoder = AutoModel.from_pretrained(tiny_encoder(tmp_path))
    with pytest.raises(UserError) as error:
        MultitaskTransformer(SentenceTransformer(encoder), {name: MOODS})
    assert str(error.value) == f"tasks: {name!r} is a word that torch modules use themselves; choose another name"


def test_an_encoder_that_is_not_understood() -> None:
    with torch.device("meta"):
        encoder = AutoModel.from_config(AutoConfig.for_model("albert"))
    with pytest.raises(UserError, match=r"^model\.encoder: the layout of 'albert' is not understood: "):
        MultitaskTransformer(SentenceTransformer(encoder), LABELS)


def test_the_models_layout_is_its_encoders(tmp_path: Path) -> None:
    model = model_of(tmp_path)
    assert model.layout == find_encoder_layout(model.sentence_transformer.encoder)
    assert model.layout.num_blocks == tiny_config("bert", LAYERS)["num_hidden_layers"]
