"""Recipes refused before training because device or precision do not support them; tests/gpu has those of GPUs."""

from pathlib import Path

import pytest
import torch

from mtl_dist.config.recipe import ModelConfig
from mtl_dist.errors import UserError
from mtl_dist.models.encoder import load_encoder, load_encoder_config
from mtl_dist.models.multitask import MultitaskTransformer, SentenceTransformer
from mtl_dist.training.device_check import check_model_on_device
from tests.utils.in_process import accelerator_here, run_here, setup_here
from tests.utils.tiny import tiny_encoder, tiny_recipe


def test_an_encoder_that_cannot_compute_in_bf16_is_refused(tmp_path: Path) -> None:
    """The first DeBERTa of transformers masks with a number that bf16 cannot represent."""
    encoder = tiny_encoder(tmp_path / "deberta", "deberta")
    recipe = tiny_recipe(tmp_path, f"model.encoder={encoder}")
    with pytest.raises(UserError) as error:
        run_here(recipe, precision="bf16")
    assert str(error.value) == (
        "model.encoder: cannot compute in mixed_precision bf16: value cannot be converted to type c10::BFloat16 without"
        " overflow; use 'no'"
    )
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("training", [True, False])
def test_a_dry_run_does_not_change_the_model(tmp_path: Path, training: bool) -> None:
    model = setup_here(tiny_recipe(tmp_path)).engine.model.train(training)
    modes = [module.training for module in model.modules()]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    check_model_on_device(accelerator_here(precision="bf16"), model)
    assert [module.training for module in model.modules()] == modes
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_another_error_of_a_forward_pass_is_not_a_user_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = setup_here(tiny_recipe(tmp_path)).engine.model
    monkeypatch.setattr(type(model.sentence_transformer), "pool", lambda *_: torch.ones(2, 3))
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        check_model_on_device(accelerator_here(), model)


def test_an_operation_without_a_deterministic_kernel_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The name comes from torch's error message, which tests/gpu provokes on a real GPU."""

    def refused(*_: object) -> None:
        raise RuntimeError(
            "grid_sampler_2d_backward_cuda does not have a deterministic implementation, but you set"
            " 'torch.use_deterministic_algorithms(True)'. You can turn off determinism just for this operation"
        )

    model = setup_here(tiny_recipe(tmp_path)).engine.model
    monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: True)
    monkeypatch.setattr(torch.Tensor, "backward", refused)
    with pytest.raises(UserError) as error:
        check_model_on_device(accelerator_here(), model)
    assert str(error.value) == (
        "safety.deterministic: this encoder needs grid_sampler_2d_backward_cuda, which has no deterministic kernel on"
        " this device; set false, and a run that resumes from a checkpoint can differ in the last bits from one that"
        " was never stopped"
    )


def test_a_dry_run_holds_one_gradient_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine may shard gradients because no device has memory for all of them."""
    model = setup_here(tiny_recipe(tmp_path)).engine.model.requires_grad_(True)
    monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: True)
    most = 0

    def count(_: torch.Tensor) -> None:
        nonlocal most
        most = max(most, sum(parameter.grad is not None for parameter in model.parameters()))

    for parameter in model.parameters():
        parameter.register_hook(count)
    check_model_on_device(accelerator_here(), model)
    assert most <= 1
    assert all(parameter.grad is None for parameter in model.parameters())


def test_an_out_of_memory_error_is_not_reported_as_missing_bf16_support(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    model = setup_here(tiny_recipe(tmp_path)).engine.model
    monkeypatch.setattr(type(model.sentence_transformer), "pool", refused)
    with pytest.raises(torch.OutOfMemoryError):
        check_model_on_device(accelerator_here(precision="bf16"), model)


@pytest.mark.parametrize(("kind", "positions"), [("bert", 1), ("bert", 3), ("roberta", 6), ("bert", 8)])
def test_an_encoder_of_few_positions_is_tried_out_with_short_texts(tmp_path: Path, kind: str, positions: int) -> None:
    model = ModelConfig(encoder=str(tiny_encoder(tmp_path, kind, positions=positions)))
    encoder = load_encoder(model, load_encoder_config(model))
    tried = MultitaskTransformer(SentenceTransformer(encoder), {"mood": ("bad", "good")})
    check_model_on_device(accelerator_here(), tried)
