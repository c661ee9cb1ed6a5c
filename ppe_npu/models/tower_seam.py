"""Where a vision tower stands in a ...Model whose blocks run through a pass (engine/inside.py), and how it gets there.

torch.compile leaves such a tower to Python, whoever compiles it or a block of it: what leaves hangs on the features, so
that hardly two pictures would share a graph.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ppe_npu.engine.compression import Compression
from ppe_npu.inspect.tower_work import Widths
from ppe_npu.models.seam import override, own_submodules, restore_methods


@dataclass(frozen=True)
class TowerSeam:
    """A kind of tower.

    Args:
        path: the names that lead from the ...Model to the tower, and on to its list of blocks.
        forwards: of each module on the way what its forward is to be.
        block: what a block's is to be: block(number, self, **kwargs).
        widths: of a block.
    """

    path: tuple[str, ...]
    forwards: tuple[Callable, ...]
    block: Callable
    widths: Callable[[Any], Widths]

    def install(self, model, compression: Compression) -> None:
        """Let patches leave the blocks of a ...Model's tower."""
        *outer, blocks = self._modules(model)
        vars(outer[0])["compression"] = compression
        compression.widths = self.widths(blocks[0]), _decoder_widths(model.language_model.layers)
        for module, forward in zip(outer, self.forwards, strict=True):
            override(module, "forward", torch.compiler.disable(forward))
        block = torch.compiler.disable(self.block)
        for number, module in enumerate(blocks):
            override(module, "forward", functools.partial(block, number))

    def uninstall(self, model) -> None:
        """Take that back from a ...Model, if it is there."""
        if not self._is_there(model):
            return
        *outer, blocks = self._modules(model)
        del vars(outer[0])["compression"]
        for module in (*outer, *blocks):
            restore_methods(module)

    def detach(self, model) -> None:
        """Give a shallow copy of a ...Model a tower and blocks of its own, around the same parameters."""
        if not self._is_there(model):
            return
        module = model
        for name in self.path:
            own_submodules(module, name)
            module = getattr(module, name)
        own_submodules(module, *module._modules)

    def _modules(self, model) -> Sequence[Any]:
        return [functools.reduce(getattr, self.path[:end], model) for end in range(1, len(self.path) + 1)]

    def _is_there(self, model) -> bool:
        tower = getattr(model, self.path[0], None)
        return tower is not None and "compression" in vars(tower)


def _decoder_widths(layers: Iterable) -> Widths | None:
    """Of a layer of the decoder, where all of them attend."""
    found = list(layers)
    attentions = [getattr(layer, "self_attn", None) for layer in found]
    if not all(hasattr(attention, "q_proj") for attention in attentions):
        return None
    first: Any = attentions[0]
    return Widths.of(found[0], [first.q_proj, first.k_proj, first.v_proj], first.o_proj)
