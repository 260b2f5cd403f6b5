"""Training on shared rows as a plain PyTorch loop with masks, one text at a time; a reference for the real one.

Of the project's code it uses the sampler's batches and the model's modules.
"""

import copy
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from mtl_dist.models.multitask import MultitaskTransformer
from mtl_dist.schedule.sampler import GlobalBatch
from tests.utils.shared_rows import CLASSES, Table
from tests.utils.tiny import tiny_tokenizer

WEIGHTS = {"team": 1.0, "urgency": 2.0, "mood": 1.0}
UNFROZEN = {"heads": 0, "upper": 5, "all": 10}
"""First step of each phase of the recipe of `shared_rows`."""


class PlainStep(NamedTuple):
    """Figures of one step."""

    losses: dict[str, float]
    """Mean loss of each task over its labelled rows in the batch; tasks without one are absent."""
    labels: dict[str, int]
    """Number of rows that count for each task."""
    norm: float
    """Norm of the gradient before clipping."""


class PlainLoop:
    """The recipe of `shared_rows` in plain PyTorch."""

    def __init__(self, model: MultitaskTransformer, table: Table, pools: Sequence[Sequence[str]]) -> None:
        """`table` is the training split and `pools` are the tasks of each of the sampler's pools."""
        self.model = copy.deepcopy(model)
        self.rows = [row for row in table if any(row[task] for task in CLASSES)]
        self.pools = pools
        self.tokenizer = tiny_tokenizer()
        groups = [
            {
                "params": [parameter],
                "lr": 5e-3 if name.startswith("heads.") else 1e-3,
                "weight_decay": 0.1 if parameter.ndim > 1 else 0.0,
            }
            for name, parameter in self.model.named_parameters()
        ]
        self.optimizer = torch.optim.AdamW(groups, eps=1e-8, foreach=False)

    def logits(self, row: Mapping[str, str], task: str, vectors: dict[str, Tensor]) -> Tensor:
        """Logits of a row, [classes]; `vectors` keeps the sentence vectors of a step by text."""
        if row["text"] not in vectors:
            tokens = self.tokenizer(row["text"], return_tensors="pt", return_token_type_ids=False)
            vectors[row["text"]] = self.model.sentence_transformer.encoder(**tokens).last_hidden_state[0, 0]
        return self.model.heads[task](vectors[row["text"]])

    def row_loss(self, row: Mapping[str, str], task: str, vectors: dict[str, Tensor]) -> Tensor:
        """Cross-entropy of a labelled row."""
        return cross_entropy(self.logits(row, task, vectors), torch.tensor(CLASSES[task].index(row[task])))

    def step(self, batch: GlobalBatch) -> PlainStep:
        """One optimizer step on the rows of `batch`."""
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(UNFROZEN[phase_of(name)] <= batch.step)
            parameter.grad = None
        vectors: dict[str, Tensor] = {}
        losses: dict[str, list[Tensor]] = {}
        for pool, number in zip(batch.pool_ids.tolist(), batch.rows.tolist(), strict=True):
            row = self.rows[number]
            for task in self.pools[pool]:
                if row[task]:
                    losses.setdefault(task, []).append(self.row_loss(row, task, vectors))
        means = {task: torch.stack(of_task).mean() for task, of_task in losses.items()}
        torch.stack([WEIGHTS[task] * mean for task, mean in means.items()]).sum().backward()
        norm = nn.utils.clip_grad_norm_([one for one in self.model.parameters() if one.grad is not None], 1.0)
        self.optimizer.step()
        labels = {task: len(losses.get(task, [])) for task in CLASSES}
        return PlainStep({task: mean.item() for task, mean in means.items()}, labels, norm.item())

    @torch.no_grad()
    def evaluate(self, table: Table) -> dict[str, tuple[float, float]]:
        """Loss and accuracy of each task over the rows of `table` that have its label."""
        figures = {}
        for task, classes in CLASSES.items():
            rows = [row for row in table if row[task]]
            losses = [self.row_loss(row, task, {}).item() for row in rows]
            hits = [int(self.logits(row, task, {}).argmax()) == classes.index(row[task]) for row in rows]
            figures[task] = sum(losses) / len(rows), sum(hits) / len(rows)
        return figures


def phase_of(name: str) -> str:
    """The phase from which a parameter of the tiny BERT trains."""
    if name.startswith("heads."):
        return "heads"
    return "upper" if ".layer.2." in name or ".layer.3." in name else "all"
