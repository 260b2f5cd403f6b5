"""An encoder's forward in two parts: what lies below one of its blocks, and what lies above.

The encoder's own forward runs both, so that masks and positions are made as it makes them. For the time of a call its
list of blocks is cut, and above the cut its embeddings are replaced by what the lower part gave. Parameters stay where
they are, and so do their names.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from mtl_dist.models.encoder import EncoderLayout


class _Given(nn.Module):
    """Stands where the embeddings do, and returns what it is given."""

    def __init__(self, states: Tensor) -> None:
        super().__init__()
        self._states = states

    def forward(self, *_: Any, **__: Any) -> Tensor:
        return self._states


class _Catch(nn.Module):
    """Stands where the first block above the cut does; keeps what enters it."""

    def __init__(self, block: nn.Module, outputs: int | None) -> None:
        """`outputs`: how many a block of this encoder returns, as a tuple; None where it returns a tensor."""
        super().__init__()
        self._block = [block]  # in a list, because it is no child
        self._outputs = outputs
        self.states: Tensor | None = None

    def __getattr__(self, name: str) -> Any:
        """Encoders ask their blocks which mask they want."""
        return getattr(self.__dict__["_block"][0], name)

    def forward(self, *arguments: Any, **named: Any) -> Any:
        self.states = _entering(arguments, named)
        if self._outputs is None:
            return self.states
        return (self.states, *[None] * (self._outputs - 1))


def _entering(arguments: tuple[Any, ...], named: dict[str, Any]) -> Tensor:
    return arguments[0] if arguments else named["hidden_states"]


class PartialForward:
    """The parts of one encoder's forward."""

    def __init__(self, encoder: PreTrainedModel, layout: EncoderLayout) -> None:
        self._encoder = encoder
        self.num_blocks = layout.num_blocks
        path, _, self._name = layout.units["blocks.0"][0].removesuffix(".0").rpartition(".")
        self._parent = encoder.get_submodule(path)

    @property
    def _blocks(self) -> list[nn.Module]:
        blocks = self._parent.get_submodule(self._name)
        assert isinstance(blocks, nn.ModuleList)
        return list(blocks)

    def from_depth(self, depth: int, states: Tensor, inputs: dict[str, Tensor]) -> Tensor:
        """The last hidden states [n, T, hidden_size], from the `states` of the same shape that enter block `depth`.

        `inputs` are the encoder's, by name; of the token ids only the shape is looked at. `depth` is at least 1.
        """
        replaced: list[tuple[nn.Module, str, nn.Module | None]] = [
            (self._encoder, "embeddings", _Given(states)),
            (self._parent, self._name, nn.ModuleList(self._blocks[depth:])),
        ]
        if isinstance(getattr(self._encoder, "embeddings_project", None), nn.Module):  # ELECTRA
            replaced.append((self._encoder, "embeddings_project", nn.Identity()))
        if isinstance(getattr(self._parent, "conv", None), nn.Module):  # DeBERTa-v2's, behind its first block
            replaced.append((self._parent, "conv", None))
        with _replacing(replaced):
            return self._encoder(**inputs).last_hidden_state

    def to_depths(self, depths: Sequence[int], inputs: dict[str, Tensor]) -> dict[int, Tensor]:
        """The hidden states [n, T, hidden_size] that enter each of the blocks `depths`; for `num_blocks`, the last.

        No block from the highest depth on is run.
        """
        caught: dict[int, Tensor] = {}

        def catch(depth: int) -> Any:
            def hook(_: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
                caught[depth] = _entering(arguments, named)

            return hook

        blocks, top = self._blocks, max(depths)
        within = [depth for depth in depths if depth < top]
        hooks = [blocks[depth].register_forward_pre_hook(catch(depth), with_kwargs=True) for depth in within]
        try:
            if top == self.num_blocks:
                caught[top] = self._encoder(**inputs).last_hidden_state
            else:
                end = _Catch(blocks[top], self._outputs)
                with _replacing([(self._parent, self._name, nn.ModuleList([*blocks[:top], end]))]):
                    self._encoder(**inputs)
                assert end.states is not None, "the encoder runs its blocks in order"
                caught[top] = end.states
        finally:
            for hook in hooks:
                hook.remove()
        return caught

    _outputs: int | None = None

    @torch.no_grad()
    def learn(self, inputs: dict[str, Tensor]) -> Tensor:
        """Learns what a block returns, by one forward on `inputs`; returns the last hidden states."""

        def hook(_: nn.Module, __: Any, output: Any) -> None:
            self._outputs = len(output) if isinstance(output, tuple) else None

        handle = self._blocks[0].register_forward_hook(hook)
        try:
            return self._encoder(**inputs).last_hidden_state
        finally:
            handle.remove()


@contextmanager
def _replacing(modules: Sequence[tuple[nn.Module, str, nn.Module | None]]) -> Iterator[None]:
    """Inside, the named children of modules are others. Set past `__setattr__`, which wrappers may watch."""
    before = [parent._modules[name] for parent, name, _ in modules]
    for parent, name, other in modules:
        parent._modules[name] = other
    try:
        yield
    finally:
        for (parent, name, _), own in zip(modules, before, strict=True):
            parent._modules[name] = own
