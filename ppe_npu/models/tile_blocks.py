"""Running InternVL's tower on some of its rows, as the passes of engine/inside.py need it.

Its rows are those of the tiles, one after the other: a class token, followed by the tile's patches. The class token is
always kept: it does not compete with patches, and no patch is rebuilt from it.

Modifications (on the given instance only, where a method works inside the tower):
* the tower's forward: makes a pass where none is given.
* its encoder's forward: gives the pass to its layers under the keyword `ppe`, which the tower's own forward does not.
* every layer's forward: runs through the pass.

With transformers' own "sdpa" or flash attention, attention calls backends.attention, with separate borders for queries
and keys. Any other chosen implementation stays in use, on all rows or tile by tile.
"""

from __future__ import annotations

import itertools
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch

from ppe_npu import backends
from ppe_npu.engine.rebuilding import Rebuilding
from ppe_npu.engine.spans import Parts
from ppe_npu.inspect.report import Stopwatch
from ppe_npu.inspect.tower_work import TowerReport, Widths
from ppe_npu.models.forward_pass import KEYWORD
from ppe_npu.models.seam import original
from ppe_npu.models.tower_blocks import OURS
from ppe_npu.models.tower_seam import TowerSeam

BLOCKS = {"InternVLVisionLayer": "InternVLVisionAttention"}
# The pass, from the tower's forward to its encoder's within one call: transformers' own forward passes no arguments on.
_ON_ITS_WAY: ContextVar[Rebuilding | None] = ContextVar("ppe_pass", default=None)


def pass_of_parts(model, parts: Parts, samples: list[int], pixels: torch.Tensor) -> Rebuilding | None:
    """The pass for the tiles of these parts, in which prompts do not compete with each other; None while no method
    works inside the tower (in a teacher's pass, see loss.uncompressed).

    Args:
        model: the ...Model. parts: images and frames of videos, in the order of their tiles.
        samples: for each part the prompt that contains it. pixels: [tiles, channels, height, width].
    """
    if model.compression.inside is None:
        return None
    pool = model.compression.inside.pool
    keys = {"frame": range(len(parts)), "image": [part.source for part in parts], "prompt": samples}[pool]
    whose = [(part.modality, key) for part, key in zip(parts, keys)]
    pools = [(*own, tile * (pool == "frame")) for own, part in zip(whose, parts) for tile in range(part.grid[0])]
    passing = _pass(model.vision_tower, pools, pixels)
    own, decoders = model.compression.widths
    passing.report = TowerReport(own, decoders, Stopwatch(pixels.device))
    return passing


def _pass(tower, pools: list, pixels: torch.Tensor) -> Rebuilding:
    """pools: for each tile the key of the pool in which its patches compete. pixels: those of the tiles, which may be
    larger than the config says."""
    height, width = tower.embeddings.patch_size
    patches, where = (pixels.shape[-2] // height) * (pixels.shape[-1] // width), pixels.device
    order = sorted(range(len(pools)), key=lambda tile: pools.index(pools[tile]))
    sizes = [patches * len(list(own)) for _, own in itertools.groupby(pools[tile] for tile in order)]
    first = torch.tensor(order, dtype=torch.long).to(where) * (patches + 1) + 1
    rows = (first[:, None] + torch.arange(patches, device=where)).flatten()
    depth = len(tower.encoder.layer)
    return Rebuilding(tower.compression.inside, tuple(sizes), depth, frozenset({depth - 1}), patches=rows)


def _tower_forward(self, **kwargs):
    before = _ON_ITS_WAY.set(_passing(self, kwargs))
    try:
        return original(self, "forward")(**kwargs)
    finally:
        _ON_ITS_WAY.reset(before)


def _passing(tower, kwargs: dict) -> Rebuilding | None:
    """The pass, taken out of the tower's arguments. When the tower is called directly, a new one, in which all patches
    compete that the method does not keep apart."""
    passing, inside = kwargs.pop(KEYWORD, None), tower.compression.inside
    if inside is None:  # during a teacher's pass, see loss.uncompressed
        return None
    if passing is None:
        tiles = len(kwargs["pixel_values"])
        passing = _pass(tower, [0] * tiles if inside.pool == "prompt" else list(range(tiles)), kwargs["pixel_values"])
    if kwargs.get("output_hidden_states") or getattr(tower.config, "output_hidden_states", False):
        passing.show_all()
    return passing


def _encoder_forward(self, **kwargs):
    from transformers.modeling_outputs import BaseModelOutput

    passing, rows = _ON_ITS_WAY.get(), kwargs["hidden_states"]
    if passing is None:  # called directly
        return original(self, "forward")(**kwargs)
    for layer in self.layer:
        rows = layer(rows, **{KEYWORD: passing})
    return BaseModelOutput(last_hidden_state=rows)


def _layer_forward(number: int, self, **kwargs):
    passing: Rebuilding | None = kwargs.pop(KEYWORD, None)
    rows = kwargs["hidden_states"]
    if passing is None:  # called directly
        return original(self, "forward")(rows)
    tiles = tuple(rows.shape[:2])
    return passing.run(number, TileBlock(self, tiles), rows.flatten(0, 1)).unflatten(0, tiles)


def _widths(layer) -> Widths:
    own = layer.attention
    return Widths.of(layer, [own.q_proj, own.k_proj, own.v_proj], own.projection_layer)


TILES = TowerSeam(("vision_tower", "encoder", "layer"), (_tower_forward, _encoder_forward), _layer_forward, _widths)


@dataclass(frozen=True)
class TileBlock:
    """One call of a layer. engine/inside.py documents its methods (Block).

    Args:
        module: the layer. tiles: how many tiles there are, and how many rows each has.
    """

    module: Any
    tiles: tuple[int, int]

    @property
    def spares_queries(self) -> bool:
        return self._ours

    def whole(self, rows: torch.Tensor) -> torch.Tensor:
        return original(self.module, "forward")(rows.unflatten(0, self.tiles)).flatten(0, 1)

    def segments(self) -> list[int]:
        count, rows = self.tiles
        return list(range(0, (count + 1) * rows, rows))

    def alone(self, rows: torch.Tensor, places: torch.Tensor, borders: list[int]) -> torch.Tensor:
        normed = self.module.layernorm_before(rows)
        if self._ours:
            heard = self._heard(normed, normed, borders, None)
        else:
            lengths = [end - start for start, end in itertools.pairwise(borders)]
            heard = torch.cat([self.module.attention(tile[None])[0][0] for tile in normed.split(lengths)])
        return self.fed(rows + self.module.lambda_1 * heard)

    def attended(
        self, rows: torch.Tensor, asking: torch.Tensor, asked: torch.Tensor | None, borders: list[int]
    ) -> torch.Tensor:
        assert asked is None, "no method looks into these layers"
        normed = self.module.layernorm_before(rows)
        if self._ours:
            heard = self._heard(normed.index_select(0, asking), normed, borders, self.segments())
        else:
            heard = self.module.attention(normed.unflatten(0, self.tiles))[0].flatten(0, 1).index_select(0, asking)
        return rows.index_select(0, asking) + self.module.lambda_1 * heard

    def fed(self, rows: torch.Tensor) -> torch.Tensor:
        made = self.module.dropout(self.module.mlp(self.module.layernorm_after(rows)))
        return rows + self.module.lambda_2 * made

    @property
    def _ours(self) -> bool:
        return self.module.attention.config._attn_implementation in OURS

    def _heard(
        self, asking: torch.Tensor, asked: torch.Tensor, borders: list[int], others: list[int] | None
    ) -> torch.Tensor:
        """[n, C] the attention output of queries from `asking` [n, C] over keys and values from `asked` [m, C].

        Args:
            borders: those of the segments of queries. others: those of the keys; None: the same.
        """
        own = self.module.attention
        query, key, value = own.q_proj(asking), own.k_proj(asked), own.v_proj(asked)
        # Under autocast a norm's output has its weights' dtype, but attention needs one dtype.
        query, key = (part.to(value.dtype) for part in (own.q_norm(query), own.k_norm(key)))
        heads = [part.unflatten(1, (own.num_heads, -1)).transpose(0, 1)[None] for part in (query, key, value)]
        dropout = own.attention_dropout if own.training else 0.0
        options: dict[str, Any] = {"cu_seqlens": borders, "cu_seqlens_k": others, "scale": own.scale}
        out = backends.attention(*heads, **options, dropout=dropout)
        return own.projection_dropout(own.projection_layer(out[0].transpose(0, 1).flatten(1)))
