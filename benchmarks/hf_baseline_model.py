"""A multi-task model for the HF Trainer: a shared encoder, a head per task, learning rates by depth."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import AutoModel

from mtl_dist.config.recipe import OptimizerConfig, Recipe


class SharedEncoder(nn.Module):
    """A BERT encoder with mean pooling and a head for each task; each row of a batch names its task."""

    def __init__(self, recipe: Recipe, num_labels: Sequence[int], frozen_in_eval: bool) -> None:
        super().__init__()
        self.encoder = AutoModel.from_pretrained(recipe.model.encoder, add_pooling_layer=False)
        hidden, dropout = self.encoder.config.hidden_size, recipe.model.dropout
        self.dropout = nn.Dropout(dropout)
        self.heads = nn.ModuleDict(
            {
                task: nn.Sequential(
                    nn.Linear(hidden, hidden), nn.ReLU(), nn.Dropout(dropout), nn.Linear(hidden, labels)
                )
                for task, labels in zip(recipe.tasks, num_labels, strict=True)
            }
        )
        self.frozen_in_eval = frozen_in_eval
        self.frozen: list[nn.Module] = []
        self._in_train_mode = False

    @property
    def num_blocks(self) -> int:
        return len(self.encoder.encoder.layer)

    def units(self) -> dict[str, nn.Module]:
        """Modules by their names in recipes."""
        blocks = {f"blocks.{index}": block for index, block in enumerate(self.encoder.encoder.layer)}
        heads = {f"heads.{task}": head for task, head in self.heads.items()}
        return {"embeddings": self.encoder.embeddings, **blocks, **heads}

    def unfreeze(self, units: Sequence[str]) -> None:
        """Makes exactly `units` trainable."""
        self.frozen = [module for unit, module in self.units().items() if unit not in units]
        for unit, module in self.units().items():
            module.requires_grad_(unit in units)
        self._in_train_mode = False

    def train(self, mode: bool = True) -> "SharedEncoder":
        """Keeps frozen modules in eval mode if `frozen_in_eval`.

        The Trainer calls this at every step; only the first call after `unfreeze` then walks through the modules.
        """
        if not self.frozen_in_eval:
            return super().train(mode)
        if not mode or not self._in_train_mode:
            super().train(mode)
            for module in self.frozen:
                module.eval()
        self._in_train_mode = mode
        return self

    def vectors(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Sentence vectors [n, hidden] of n texts."""
        hidden = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        attended = attention_mask.unsqueeze(-1).to(hidden.dtype)
        return self.dropout((hidden * attended).sum(dim=1) / attended.sum(dim=1))

    def forward(self, input_ids: Tensor, attention_mask: Tensor, task: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """The sum over tasks of the mean loss over the task's rows; `task` [n] holds indices of the recipe's tasks."""
        vectors = self.vectors(input_ids, attention_mask)
        losses = []
        for index, head in enumerate(self.heads.values()):
            rows = (task == index).nonzero().squeeze(1)
            if len(rows):
                losses.append(cross_entropy(head(vectors[rows]).float(), labels[rows]))
        return {"loss": torch.stack(losses).sum()}


def optimizer_of(model: SharedEncoder, config: OptimizerConfig) -> torch.optim.AdamW:
    """AdamW for the whole run, with the learning rates by depth and the weight decay of mtl_dist."""
    members: dict[tuple[float, float], list[nn.Parameter]] = {}
    for unit, module in model.units().items():
        rate = config.lr * config.head_lr_multiplier if unit.startswith("heads.") else config.lr
        if not unit.startswith("heads."):
            depth = model.num_blocks if unit == "embeddings" else model.num_blocks - 1 - int(unit.split(".")[1])
            rate *= config.block_lr_decay**depth
        for parameter in module.parameters():
            members.setdefault((rate, config.weight_decay if parameter.ndim > 1 else 0.0), []).append(parameter)
    groups = [{"params": params, "lr": rate, "weight_decay": decay} for (rate, decay), params in members.items()]
    return torch.optim.AdamW(groups, betas=(config.beta1, config.beta2), eps=config.eps, fused=True)


def scheduler_of(
    optimizer: torch.optim.Optimizer, warmup_steps: int, total_steps: int
) -> torch.optim.lr_scheduler.LambdaLR:
    """Linear warm-up and decay over the whole run, as in the quickstart."""

    def factor(step: int) -> float:
        if step < warmup_steps:
            return step / warmup_steps
        return max(0.0, 1.0 - (step - warmup_steps) / max(1, total_steps - warmup_steps))

    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
