"""The forward pass of an encoder in two parts: up to a prefix depth, and from that depth on.

Prefix depth k stands for the hidden states that enter block k. Both parts call the encoder's own forward method, which
builds masks and positions as usual. During the call its list of blocks is shortened, and in the second part the
embeddings are replaced by the given states. Parameters keep their places and names.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from mtl_dist.models.encoder import EncoderLayout


class _PrecomputedStates(nn.Module):
    """Replaces the embeddings: returns states that were computed before."""

    def __init__(self, states: Tensor) -> None:
        super().__init__()
        self._states = states

    def forward(self, *_: Any, **__: Any) -> Tensor:
        return self._states


class _Capture(nn.Module):
    """Replaces the first block that is not run: keeps the states that enter it, and passes them on."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self._block = [block]  # in a list, so that it is not registered as a child
        self.num_outputs: int | None = None
        """Length of the tuple that a block of this encoder returns; None for a tensor."""
        self.states: Tensor | None = None

    def __getattr__(self, name: str) -> Any:
        """Encoders read attributes of their blocks, such as the attention mask that they need."""
        return getattr(self.__dict__["_block"][0], name)

    def note_outputs(self, _: nn.Module, __: Any, output: Any) -> None:
        """Forward hook of the block before this one: all blocks are of one class, so this one would return the same."""
        self.num_outputs = len(output) if isinstance(output, tuple) else None

    def forward(self, *arguments: Any, **named: Any) -> Any:
        self.states = _hidden_states(arguments, named)
        if self.num_outputs is None:
            return self.states
        return (self.states, *[None] * (self.num_outputs - 1))


def _hidden_states(arguments: tuple[Any, ...], named: dict[str, Any]) -> Tensor:
    return arguments[0] if arguments else named["hidden_states"]


class PartialForward:
    """Runs one encoder up to a prefix depth, or from a prefix depth to its end."""

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
        """Last hidden states [n, T, hidden_size], computed from the `states` of that shape that enter block `depth`.

        `depth` is at least 1. `inputs` are the encoder's arguments by name; only the shape of the token ids is used.
        """
        replacements: list[tuple[nn.Module, str, nn.Module | None]] = [
            (self._encoder, "embeddings", _PrecomputedStates(states)),
            (self._parent, self._name, nn.ModuleList(self._blocks[depth:])),
        ]
        if isinstance(getattr(self._encoder, "embeddings_project", None), nn.Module):  # ELECTRA
            replacements.append((self._encoder, "embeddings_project", nn.Identity()))
        if isinstance(getattr(self._parent, "conv", None), nn.Module):  # DeBERTa-v2: runs after its first block
            replacements.append((self._parent, "conv", None))
        with _replaced(replacements):
            return self._encoder(**inputs).last_hidden_state

    def to_depths(self, depths: Sequence[int], inputs: dict[str, Tensor]) -> dict[int, Tensor]:
        """Hidden states [n, T, hidden_size] at each of the `depths`, which are at least 1.

        At depth `num_blocks` these are the last hidden states. Blocks from the greatest depth on are not run.
        """
        captured: dict[int, Tensor] = {}

        def capture_at(depth: int) -> Any:
            def hook(_: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
                captured[depth] = _hidden_states(arguments, named)

            return hook

        blocks, last = self._blocks, max(depths)
        before = [depth for depth in depths if depth < last]
        handles = [blocks[depth].register_forward_pre_hook(capture_at(depth), with_kwargs=True) for depth in before]
        try:
            if last == self.num_blocks:
                captured[last] = self._encoder(**inputs).last_hidden_state
            else:
                end = _Capture(blocks[last])
                handles.append(blocks[last - 1].register_forward_hook(end.note_outputs))
                with _replaced([(self._parent, self._name, nn.ModuleList([*blocks[:last], end]))]):
                    self._encoder(**inputs)
                assert end.states is not None, "the encoder runs its blocks in order"
                captured[last] = end.states
        finally:
            for handle in handles:
                handle.remove()
        return captured


@contextmanager
def _replaced(replacements: Sequence[tuple[nn.Module, str, nn.Module | None]]) -> Iterator[None]:
    """Replaces named children of modules inside the context. Bypasses `__setattr__`, which wrappers may override."""
    originals = [parent._modules[name] for parent, name, _ in replacements]
    for parent, name, replacement in replacements:
        parent._modules[name] = replacement
    try:
        yield
    finally:
        for (parent, name, _), original in zip(replacements, originals, strict=True):
            parent._modules[name] = original
