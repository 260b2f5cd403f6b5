"""One task's classifier: an encoder, pooling of its last hidden states, and a head of Linear, ReLU, Dropout, Linear.

Needs torch and transformers only: `export` copies this file into the folder that it writes, from which
`transformers.pipeline("text-classification", FOLDER, trust_remote_code=True)` loads it.
"""

import inspect
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput


class PooledClassifierConfig(PreTrainedConfig):
    """Settings of the encoder, its pooling and the head."""

    model_type = "mtl_dist_pooled_classifier"  # unknown to transformers, or it would load a class of its own instead

    def __init__(
        self,
        encoder: dict[str, Any] | None = None,
        pooling: str = "first_token",
        head_dropout: float = 0.1,
        **kwargs: Any,
    ) -> None:
        """`encoder`: settings of an encoder of transformers, with its `model_type`; `pooling`: first_token or mean."""
        self.encoder = encoder or {"model_type": "bert"}
        self.pooling = pooling
        self.head_dropout = head_dropout
        super().__init__(**kwargs)


class PooledClassifier(PreTrainedModel):
    """Returns logits of texts; in train mode with dropout after pooling and in the head."""

    config_class = PooledClassifierConfig
    base_model_prefix = "encoder"

    def __init__(self, config: PooledClassifierConfig) -> None:
        super().__init__(config)
        settings = AutoConfig.for_model(**config.encoder)
        encoder: Any = AutoModel.from_config(settings)
        if getattr(encoder, "pooler", None) is not None:
            encoder.pooler = None
        self.encoder = encoder
        self.dropout = nn.Dropout(config.head_dropout)
        size, labels = settings.hidden_size, len(config.id2label or {})
        self.head = nn.Sequential(
            nn.Linear(size, size), nn.ReLU(), nn.Dropout(config.head_dropout), nn.Linear(size, labels)
        )
        self.post_init()

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        labels: Tensor | None = None,
        **kwargs: Any,
    ) -> SequenceClassifierOutput:
        """Logits [n, num_labels], and with `labels` [n] the mean cross-entropy; the other arguments are [n, tokens]."""
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        types: dict[str, Tensor] = {}
        if token_type_ids is not None and "token_type_ids" in inspect.signature(self.encoder.forward).parameters:
            types = {"token_type_ids": token_type_ids}
        hidden = self.encoder(input_ids=input_ids, attention_mask=attention_mask, **types).last_hidden_state
        if self.config.pooling == "first_token":
            vectors = hidden[:, 0]
        else:
            attended = attention_mask.unsqueeze(-1).to(hidden.dtype)
            vectors = (hidden * attended).sum(dim=1) / attended.sum(dim=1)
        logits = self.head(self.dropout(vectors))
        loss = None if labels is None else nn.functional.cross_entropy(logits, labels)
        return SequenceClassifierOutput(loss=loss, logits=logits)
