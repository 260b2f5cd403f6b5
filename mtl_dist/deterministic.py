"""Kernels whose sums have one order. On GPUs torch's fastest ones add in the order in which threads finish.

Without, a run that goes on from a checkpoint ends in other bits than one that was never stopped.
"""

import os
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from mtl_dist.errors import UserError, reason
from mtl_dist.model import MultitaskTransformer
from mtl_dist.vocabulary import PLACEHOLDER

WORKSPACES = "CUBLAS_WORKSPACE_CONFIG"
_REFUSAL = "does not have a deterministic implementation"
"""Of torch's error, after the name of the operation."""


def choose_kernels(device: torch.device, deterministic: bool) -> None:
    """Has torch take deterministic kernels or the fastest ones, before its first work on `device`; CPUs have no other.

    Of operations without a deterministic kernel torch then raises RuntimeError.
    """
    if device.type != "cuda":
        return
    torch.use_deterministic_algorithms(deterministic)
    settings: Any = torch.utils.deterministic
    settings.fill_uninitialized_memory = False  # for finding mistakes, and slow
    _settle_cublas(device)


def _settle_cublas(device: torch.device) -> None:
    """Shows torch once that cuBLAS has its workspaces from a variable, for which it looks at the first product.

    Left there, torch 2.11 parses it anew in every product, and takes ten times as long to start one. It gives every
    handle of cuBLAS a workspace of its own in any case, by which results are the same each time (NVIDIA's manual of
    cuBLAS, "Results reproducibility").
    """
    ours = WORKSPACES not in os.environ and torch.version.hip is None
    os.environ.setdefault(WORKSPACES, ":4096:8")
    _multiply(device)
    if ours:
        del os.environ[WORKSPACES]
        try:
            _multiply(device)
        except RuntimeError as error:
            if WORKSPACES not in str(error):
                raise
            os.environ[WORKSPACES] = ":4096:8"  # for a torch that looks each time


def _multiply(device: torch.device) -> None:
    """In the thread of forwards and in that of backwards, each of which has a handle of cuBLAS."""
    one = torch.ones(8, 8, device=device, requires_grad=True)
    torch.nn.functional.linear(one, one, one[0]).sum().backward()


def try_out(accelerator: Accelerator, model: MultitaskTransformer) -> None:
    """Computes two short texts once, and where kernels are to be deterministic a gradient of everything.

    Moves `model` to the device. Raises UserError where the encoder cannot compute in the precision that was asked for,
    or has an operation without a deterministic kernel.
    """
    deterministic = torch.are_deterministic_algorithms_enabled()
    model.to(accelerator.device)
    tokens = torch.full((2, 8), PLACEHOLDER, device=accelerator.device)
    mask = torch.ones_like(tokens)
    mask[1, 6:] = 0
    rows = dict.fromkeys(model.heads, torch.arange(2, device=accelerator.device))
    training = model.training
    # No device holds all of a gradient, of which an engine may give it a part.
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
                " on this device; set false, and a run that goes on from a checkpoint can differ in the last bits from"
                " one that was never stopped"
            ) from error
        if accelerator.mixed_precision == "no":
            raise
        raise UserError(
            f"model.encoder: cannot compute in mixed_precision {accelerator.mixed_precision}: {reason(error)}; use 'no'"
        ) from error
    finally:
        model.train(training)
        for drop in drops:
            drop.remove()


def _drop(parameter: Tensor) -> None:
    parameter.grad = None
