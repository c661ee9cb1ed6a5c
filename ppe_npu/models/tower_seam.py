"""Installing and removing the overrides that make a vision tower's blocks run through a pass (engine/inside.py).

torch.compile does not trace such a tower, even if the tower or one of its blocks is compiled: the patches that leave
depend on the features, so that hardly two pictures would share a graph.
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
        path: attribute names that lead from the ...Model to the tower, and on to its list of blocks.
        forwards: the new forward of each module on that path except the list of blocks.
        block: the new forward of a block: block(number, self, **kwargs).
        widths: the function that returns a block's Widths.
    """

    path: tuple[str, ...]
    forwards: tuple[Callable, ...]
    block: Callable
    widths: Callable[[Any], Widths]

    def install(self, model, compression: Compression) -> None:
        """Make a ...Model's tower and its blocks run through passes."""
        *outer, blocks = self._modules(model)
        vars(outer[0])["compression"] = compression
        compression.widths = self.widths(blocks[0]), _decoder_widths(model.language_model.layers)
        for module, forward in zip(outer, self.forwards, strict=True):
            override(module, "forward", torch.compiler.disable(forward))
        block = torch.compiler.disable(self.block)
        for number, module in enumerate(blocks):
            override(module, "forward", functools.partial(block, number))

    def uninstall(self, model) -> None:
        """Undo install() on a ...Model, if it was called."""
        if not self._is_there(model):
            return
        *outer, blocks = self._modules(model)
        del vars(outer[0])["compression"]
        for module in (*outer, *blocks):
            restore_methods(module)

    def detach(self, model) -> None:
        """Give a shallow copy of a ...Model its own tower and blocks, around the same parameters."""
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
    """The Widths of a decoder layer; None unless all layers have attention."""
    found = list(layers)
    attentions = [getattr(layer, "self_attn", None) for layer in found]
    if not all(hasattr(attention, "q_proj") for attention in attentions):
        return None
    first: Any = attentions[0]
    return Widths.of(found[0], [first.q_proj, first.k_proj, first.v_proj], first.o_proj)
