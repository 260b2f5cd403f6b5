"""Loading and layout of tiny random encoders of every kind; and refused encoders, each with its message."""

import itertools
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoConfig, AutoModel, AutoModelForMaskedLM, PreTrainedModel
from transformers import logging as transformers_logging

from mtl_dist.config.recipe import ModelConfig
from mtl_dist.errors import UserError
from mtl_dist.models.encoder import (
    check_max_length,
    drop_pooler,
    encoder_skeleton,
    find_encoder_layout,
    load_encoder,
    load_encoder_config,
    new_encoder,
)
from tests.utils.hostile import change_config, with_code
from tests.utils.tiny import KINDS, SPECIAL, WORDS, tiny_config, tiny_encoder

LAYERS = 4
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {kind: (kind, {}) for kind in KINDS} | {
    "deberta-v2 with a convolution": ("deberta-v2", {"conv_kernel_size": 3, "conv_act": "gelu"}),
    "deberta-v2 without positions": ("deberta-v2", {"position_biased_input": False}),
    "electra of one width": ("electra", {"embedding_size": 16}),
}


@pytest.fixture(params=VARIANTS)
def encoder(request: pytest.FixtureRequest) -> PreTrainedModel:
    kind, settings = VARIANTS[request.param]
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **tiny_config(kind, LAYERS) | settings)
    return drop_pooler(AutoModel.from_config(config)).eval()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tiny_encoder(tmp_path / "encoder")


def run(encoder: PreTrainedModel, tokens: int = 6) -> torch.Tensor:
    generator = torch.Generator().manual_seed(tokens)
    input_ids = torch.randint(len(SPECIAL), len(SPECIAL) + len(WORDS), (2, tokens), generator=generator)
    return encoder(input_ids=input_ids, attention_mask=torch.ones_like(input_ids)).last_hidden_state


def loaded(folder: Path, **settings: Any) -> PreTrainedModel:
    model = ModelConfig(encoder=str(folder), **settings)
    return load_encoder(model, load_encoder_config(model))


def refusal(folder: Path | str, **settings: Any) -> str:
    """The one-line message with which loading `folder` is refused."""
    with pytest.raises(UserError) as error:
        loaded(Path(folder), **settings)
    message = str(error.value)
    assert len(message.splitlines()) == 1
    return message


def test_every_parameter_is_in_exactly_one_unit(encoder: PreTrainedModel) -> None:
    layout = find_encoder_layout(encoder)
    assert list(layout.units) == ["embeddings", *(f"blocks.{index}" for index in range(LAYERS))]
    assert layout.num_blocks == LAYERS
    modules = [encoder.get_submodule(name) for names in layout.units.values() for name in names]
    owners = Counter(parameter for module in modules for parameter in module.parameters())
    assert owners == Counter(encoder.parameters())


def test_units_run_in_order(encoder: PreTrainedModel) -> None:
    """Parts such as a final norm run directly before or after the other modules of their unit."""
    ran: list[str] = []
    units = find_encoder_layout(encoder).units
    for unit, names in units.items():
        for name in names:
            encoder.get_submodule(name).register_forward_hook(lambda *_, unit=unit: ran.append(unit))
    run(encoder)
    assert [unit for unit, _ in itertools.groupby(ran)] == list(units)


def test_units_contain_every_dropout(encoder: PreTrainedModel) -> None:
    """Otherwise, frozen units in eval mode would have dropout, or unfrozen ones in train mode would not."""
    modules = [encoder.get_submodule(name) for names in find_encoder_layout(encoder).units.values() for name in names]
    held = {part for module in modules for part in module.modules()}
    dropouts = [module for module in encoder.modules() if isinstance(module, nn.Dropout)]
    assert dropouts
    assert held.issuperset(dropouts)


def test_skeleton_has_the_encoders_names_and_shapes_on_the_meta_device(encoder: PreTrainedModel) -> None:
    skeleton = encoder_skeleton(encoder.config)
    assert all(parameter.is_meta for parameter in skeleton.parameters())
    shapes = [[(name, p.shape) for name, p in one.named_parameters()] for one in (skeleton, encoder)]
    assert shapes[0] == shapes[1]
    assert find_encoder_layout(skeleton) == find_encoder_layout(encoder)


def test_max_length_is_refused_exactly_if_the_forward_pass_would_fail(encoder: PreTrainedModel) -> None:
    """Of 40 rows of positions, RoBERTa and models derived from it use 38."""
    for tokens in range(36, 44):
        runs = allowed = True
        try:
            run(encoder, tokens)
        except (IndexError, RuntimeError):
            runs = False
        try:
            check_max_length(encoder, tokens)
        except UserError:
            allowed = False
        assert runs == allowed


def test_max_length_message_names_the_positions() -> None:
    messages = {}
    for kind in ("bert", "roberta", "mpnet"):
        encoder = encoder_skeleton(AutoConfig.for_model(kind, **tiny_config(kind)))
        with pytest.raises(UserError) as error:
            check_max_length(encoder, 128)
        messages[kind] = str(error.value)
    assert messages == {
        kind: f"data.max_length: 128 is more than the {positions} positions of the encoder"
        for kind, positions in {"bert": 40, "roberta": 38, "mpnet": 38}.items()
    }


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        ("albert", "it has 12 layers but 1 blocks; layers that share are one"),
        ("t5", "it has a decoder"),
        ("gpt2", "the place of wte.weight is not known"),
        ("clip", "its configuration has no num_hidden_layers"),
        ("segformer", "it has no embeddings"),
        ("mgp-str", "it has no list of equal blocks"),
    ],
)
def test_layouts_that_are_not_understood(kind: str, why: str) -> None:
    skeleton = encoder_skeleton(AutoConfig.for_model(kind))
    with pytest.raises(UserError) as error:
        find_encoder_layout(skeleton)
    assert str(error.value) == f"model.encoder: the layout of '{kind}' is not understood: {why}"


def test_an_encoder_that_transformers_cannot_build() -> None:
    with pytest.raises(UserError) as error:
        encoder_skeleton(AutoConfig.for_model("autoformer"))
    assert str(error.value) == (
        "model.encoder: cannot build a 'autoformer' encoder: The `prediction_length` config needs to be specified."
    )


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_loads_saved_weights(tmp_path: Path, dtype: str) -> None:
    for kind in KINDS:
        folder = tiny_encoder(tmp_path / kind, kind)
        saved = load_file(folder / "model.safetensors")
        encoder = loaded(folder, dtype=dtype)
        weights = encoder.state_dict()
        assert weights.keys() == {name for name in saved if not name.startswith("pooler.")}
        for name, weight in weights.items():
            assert weight.dtype == getattr(torch, dtype)
            assert torch.equal(weight, saved[name].to(weight.dtype))


def test_loads_the_encoder_of_a_model_with_a_head_in_silence(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Most checkpoints on the hub have prefixed names, an unused head and no pooler."""
    torch.manual_seed(0)
    whole: Any = AutoModelForMaskedLM.from_config(AutoConfig.for_model("bert", **tiny_config("bert")))
    whole.save_pretrained(tmp_path)
    before = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    capfd.readouterr()
    encoder = loaded(tmp_path)
    assert capfd.readouterr() == ("", "")
    assert (transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()) == before
    expected = whole.bert.state_dict()
    assert encoder.state_dict().keys() == expected.keys()
    assert all(torch.equal(weight, expected[name]) for name, weight in encoder.state_dict().items())


@pytest.mark.parametrize("kind", KINDS)
def test_encoder_dropout_sets_every_dropout_of_the_encoder(tmp_path: Path, kind: str) -> None:
    folder = tiny_encoder(tmp_path, kind)
    kept = load_encoder_config(ModelConfig(encoder=str(folder)))
    assert kept.to_dict() == AutoConfig.from_pretrained(folder).to_dict()
    half = loaded(folder, encoder_dropout=0.5)
    assert {module.p for module in half.modules() if isinstance(module, nn.Dropout)} == {0.5}
    none = loaded(folder, encoder_dropout=0.0)
    assert torch.equal(run(none.train()), run(none.eval()))


def test_encoder_dropout_does_not_change_heads(folder: Path) -> None:
    change_config(folder, classifier_dropout=0.4)
    config = load_encoder_config(ModelConfig(encoder=str(folder), encoder_dropout=0.2))
    assert (config.hidden_dropout_prob, config.attention_probs_dropout_prob) == (0.2, 0.2)
    assert config.classifier_dropout == 0.4


def test_encoder_dropout_is_refused_without_a_known_setting(tmp_path: Path) -> None:
    AutoConfig.for_model("mamba").save_pretrained(tmp_path)
    save_file({"weight": torch.zeros(1)}, tmp_path / "model.safetensors")
    assert refusal(tmp_path, encoder_dropout=0.1) == (
        "model.encoder_dropout: mamba has no dropout rate that is known here"
    )


def test_a_missing_folder(tmp_path: Path) -> None:
    folder = tmp_path / "nowhere"
    assert refusal(folder).startswith(f"model.encoder: {folder}: no folder here, and cannot be loaded: ")
    assert refusal("no-such-encoder").startswith("model.encoder: no-such-encoder: no folder here, and cannot be")


def test_weights_that_are_pickle_files_only(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(weights, folder / "pytorch_model.bin")
    expected = f"model.encoder: {folder} has no model.safetensors; weights as pickle files are not read"
    assert refusal(folder) == expected


@pytest.mark.parametrize(
    ("index", "why"),
    [
        (
            '{"weight_map": {"a": "model-1.safetensors", "b": "pytorch_model.bin"}}',
            "names pytorch_model.bin; ",
        ),
        ('{"weight_map": ["a"]}', "is no index of weights (AttributeError)"),
        ("[]", "is no index of weights (TypeError)"),
        ("{", "is no index of weights (JSONDecodeError)"),
    ],
)
def test_an_index_of_weights_that_names_pickles_or_is_invalid(folder: Path, index: str, why: str) -> None:
    (folder / "model.safetensors.index.json").write_text(index)
    assert refusal(folder).startswith(f"model.encoder: {folder}/model.safetensors.index.json {why}")


def test_weights_that_are_incomplete(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    left = {name: weight for name, weight in weights.items() if ".layer.2." not in name}
    save_file(left, folder / "model.safetensors", metadata={"format": "pt"})
    gone = sorted(weights.keys() - left.keys())
    assert refusal(folder) == f"model.encoder: {folder} has no weights for {gone[0]} ({len(gone)} missing)"


def test_weights_of_another_shape(folder: Path) -> None:
    change_config(folder, intermediate_size=24)
    name = "encoder.layer.0.intermediate.dense.bias"
    assert refusal(folder) == f"model.encoder: {folder}: the shape of {name} is not that of its config.json"


def test_weights_that_are_not_safetensors(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"not weights" * 9)
    assert refusal(folder).startswith(f"model.encoder: cannot load the weights of {folder}: ")


@pytest.mark.parametrize(
    ("text", "words"), [("{", "not a valid JSON file"), ('{"model_type": "nonesuch"}', "nonesuch")]
)
def test_an_invalid_configuration(folder: Path, text: str, words: str) -> None:
    (folder / "config.json").write_text(text)
    message = refusal(folder)
    assert message.startswith(f"model.encoder: {folder}: cannot be loaded: ")
    assert words in message


def test_code_in_the_folder_runs_only_where_it_is_trusted(folder: Path, tmp_path: Path) -> None:
    ran = tmp_path / "ran"
    expected = loaded(folder).state_dict()
    with_code(folder, ran, model_type="own")
    message = refusal(folder)
    assert message.startswith(
        f"model.encoder: {folder}: cannot be loaded: The repository {folder} contains custom code"
    )
    assert message.endswith("; model.trust_remote_code=true allows it")
    assert not ran.exists()
    encoder = loaded(folder, trust_remote_code=True)
    assert ran.exists()
    assert type(encoder).__name__ == "OwnModel"
    assert find_encoder_layout(encoder).num_blocks == LAYERS
    assert find_encoder_layout(encoder_skeleton(encoder.config, trust_remote_code=True)) == find_encoder_layout(encoder)
    assert all(torch.equal(weight, expected[name]) for name, weight in encoder.state_dict().items())


def test_code_for_a_known_type_is_not_ignored(folder: Path, tmp_path: Path) -> None:
    """transformers would use its own class, which may compute something else."""
    with_code(folder, tmp_path / "ran")
    assert refusal(folder) == (
        f"model.encoder: {folder}: its config.json names code of its own (auto_map);"
        " model.trust_remote_code=true allows it"
    )
    assert not (tmp_path / "ran").exists()
    assert type(loaded(folder, trust_remote_code=True)).__name__ == "OwnModel"


def test_new_encoder_has_random_weights_of_the_given_type(folder: Path) -> None:
    encoder = new_encoder(load_encoder_config(ModelConfig(encoder=str(folder))), torch.float64)
    assert {parameter.dtype for parameter in encoder.parameters()} == {torch.float64}
    assert encoder.state_dict().keys() == loaded(folder).state_dict().keys()
