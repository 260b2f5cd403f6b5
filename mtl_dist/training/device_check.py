"""A dry run of the model on its device, so that what the device cannot compute is refused before training."""

import torch
from accelerate import Accelerator
from torch import Tensor

from mtl_dist.errors import UserError, root_cause
from mtl_dist.models.encoder import num_positions
from mtl_dist.models.multitask import MultitaskTransformer
from mtl_dist.models.vocab_trimming import PLACEHOLDER_TOKEN

_REFUSAL = "does not have a deterministic implementation"
"""What follows the operation's name in torch's error about an operation without a deterministic kernel."""


def check_model_on_device(accelerator: Accelerator, model: MultitaskTransformer) -> None:
    """Runs two short texts through the model, and with deterministic kernels a backward pass of every parameter.

    Moves `model` to the device. Raises UserError where the encoder cannot compute in the requested precision, or has an
    operation without a deterministic kernel.
    """
    deterministic = torch.are_deterministic_algorithms_enabled()
    model.to(accelerator.device)
    length = min(8, num_positions(model.sentence_transformer.encoder) or 8)
    tokens = torch.full((2, length), PLACEHOLDER_TOKEN, device=accelerator.device)
    mask = torch.ones_like(tokens)
    mask[1, max(1, length - 2) :] = 0
    rows = dict.fromkeys(model.heads, torch.arange(2, device=accelerator.device))
    training = model.training
    # A device that gets a shard of the model may not have the memory for the whole gradient.
    drops = [one.register_post_accumulate_grad_hook(_drop) for one in model.parameters() if one.requires_grad]
    try:
        with accelerator.autocast(), torch.set_grad_enabled(deterministic):
            logits = model.train(deterministic)(tokens, mask, rows)
        if deterministic:
            torch.stack([one.float().sum() for one in logits.values()]).sum().backward()
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        operation, _, _ = str(error).partition(_REFUSAL)
        if operation != str(error):
            raise UserError(
                f"safety.deterministic: this encoder needs {operation.split()[-1]}, which has no deterministic kernel"
                " on this device; set false, and a run that resumes from a checkpoint can differ in the last bits from"
                " one that was never stopped"
            ) from error
        if accelerator.mixed_precision == "no":
            raise
        raise UserError(
            f"model.encoder: cannot compute in mixed_precision {accelerator.mixed_precision}: {root_cause(error)};"
            " use 'no'"
        ) from error
    finally:
        model.train(training)
        for drop in drops:
            drop.remove()


def _drop(parameter: Tensor) -> None:
    parameter.grad = None
