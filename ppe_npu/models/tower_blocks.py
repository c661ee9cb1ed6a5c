"""Running blocks of the Qwen towers on some of their rows, as the passes of engine/inside.py need it.

Modifications (on the given instance only, where a method works inside the tower):
* the tower's forward: makes a pass, and gives it to its blocks under the keyword `ppe`, like any other argument.
* every block's forward: runs through the pass.

With transformers' own "sdpa" or flash attention, attention calls backends.attention, with separate borders for queries
and keys. Any other chosen implementation stays in use; where it has to run on all rows, surplus output is discarded.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import linear
from torch.utils.weak import WeakTensorKeyDictionary

from ppe_npu import backends
from ppe_npu.engine.inside import TowerPass
from ppe_npu.engine.tower_pass import pass_of, pools_of_grids
from ppe_npu.inspect.tower_work import Widths
from ppe_npu.models.forward_pass import KEYWORD
from ppe_npu.models.seam import original
from ppe_npu.models.tower_seam import TowerSeam

_ON_HOST = WeakTensorKeyDictionary()  # borders of windows, as long as their tensor lives
OURS = ("sdpa", "flash_attention_2", "flash_attention_3")


def _tower_forward(self, **kwargs):
    """The tower's forward. When it is called directly, all patches compete that the method does not keep apart."""
    shown = kwargs.get("output_hidden_states") or getattr(self.config, "output_hidden_states", False)
    compression = self.compression
    if compression.inside is None:  # during a teacher's pass, see loss.uncompressed
        return original(self, "forward")(**kwargs)
    if kwargs.get(KEYWORD) is None:
        if compression.inside.place == "pixels":  # no cells were chosen
            return original(self, "forward")(**kwargs)
        pixels, seen = kwargs["hidden_states"], compression.tower.all
        pools, where = pools_of_grids(compression.inside.pool, kwargs["grid_thw"], len(pixels)), pixels.device
        kwargs[KEYWORD] = pass_of(compression.inside, pools, compression.vision, where, seen)
    if shown:
        kwargs[KEYWORD].show_all()
    return original(self, "forward")(**kwargs)


def _block_forward(number: int, self, **kwargs):
    passing: TowerPass | None = kwargs.pop(KEYWORD, None)
    rows = kwargs.pop("hidden_states")
    if passing is None:  # called directly
        return original(self, "forward")(rows, **kwargs)
    cos, sin = kwargs.pop("position_embeddings")
    return passing.run(number, TowerBlock(self, kwargs.pop("cu_seqlens"), (cos, sin), kwargs), rows)


def _widths(block) -> Widths:
    return Widths.of(block, [block.attn.qkv], block.attn.proj)


GRIDS = TowerSeam(("visual", "blocks"), (_tower_forward,), _block_forward, _widths)


@dataclass(frozen=True)
class TowerBlock:
    """One call of a block with norm1, attn (qkv, proj), norm2 and mlp. engine/inside.py documents its methods (Block).

    Args:
        module: the block. cu_seqlens: [segments + 1] borders of its frames or windows.
        table: cos, sin [L, D] of all rows. others: the other arguments of the call.
    """

    module: Any
    cu_seqlens: torch.Tensor
    table: tuple[torch.Tensor, torch.Tensor]
    others: dict

    @property
    def spares_queries(self) -> bool:
        return self._ours and _can_spare(self.module.attn)

    def whole(self, rows: torch.Tensor) -> torch.Tensor:
        given = {"cu_seqlens": self.cu_seqlens, "position_embeddings": self.table, **self.others}
        return original(self.module, "forward")(rows, **given)

    def segments(self) -> list[int]:
        return on_host(self.cu_seqlens)

    def alone(self, rows: torch.Tensor, places: torch.Tensor, borders: list[int]) -> torch.Tensor:
        attention, normed, table = self.module.attn, self.module.norm1(rows), self._table(places)
        if self._ours:
            made, _ = vision_attention(attention, normed, table, borders)
        else:
            cu_seqlens = torch.tensor(borders, dtype=self.cu_seqlens.dtype, device=rows.device)
            others = {name: value for name, value in self.others.items() if name != "max_seqlen"}
            made = attention(normed, cu_seqlens=cu_seqlens, position_embeddings=table, **others)
        return self.fed(rows + made)

    def keyed(
        self, rows: torch.Tensor, places: torch.Tensor, borders: list[int], full: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        attention, normed = self.module.attn, self.module.norm1(rows)
        if full:
            some = Some(places, borders, places, borders)
            made, keys = vision_attention(attention, normed, self.table, borders, some)
            rows = rows.index_select(0, places)
        else:
            made, keys = vision_attention(attention, normed, self._table(places), borders)
        return rows + made, keys[0].detach().float().mean(0)

    def attended(
        self, rows: torch.Tensor, asking: torch.Tensor, asked: torch.Tensor | None, borders: list[int]
    ) -> torch.Tensor:
        attention, normed = self.module.attn, self.module.norm1(rows)
        if self._ours or asked is not None:
            others = self.segments() if asked is None else borders
            made, _ = vision_attention(attention, normed, self.table, others, Some(asking, borders, asked, others))
        else:
            given = {"cu_seqlens": self.cu_seqlens, "position_embeddings": self.table, **self.others}
            made = attention(normed, **given).index_select(0, asking)
        return rows.index_select(0, asking) + made

    def fed(self, rows: torch.Tensor) -> torch.Tensor:
        return rows + self.module.mlp(self.module.norm2(rows))

    def _table(self, places: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        cos, sin = (part.index_select(0, places) for part in self.table)
        return cos, sin

    @property
    def _ours(self) -> bool:
        return self.module.attn.config._attn_implementation in OURS


@dataclass(frozen=True)
class Some:
    """A selection of the rows of a block's attention.

    Args:
        asking: [n] index of the rows that are queries; `borders`: of their segments.
        asked: [m] index of the rows that are keys and values, None: all; `asked_borders`: of their segments.
    """

    asking: torch.Tensor
    borders: list[int]
    asked: torch.Tensor | None
    asked_borders: list[int]


def vision_attention(
    attention, rows: torch.Tensor, table: tuple[torch.Tensor, ...], borders: list[int], some: Some | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """A tower's attention by ppe_npu.backends, including its projections: [T, C] -> [T, C], or [n, C] for n of the
    rows; and the keys [1, heads, m, D].

    Args:
        attention: a module with qkv, proj, num_heads and scaling. table: cos, sin [T, D].
        borders: those of frames or windows.
    """
    options: dict[str, Any] = {"cu_seqlens": borders}
    if some is not None:
        options = {"cu_seqlens": some.borders, "cu_seqlens_k": some.asked_borders}
    if some is not None and some.asked is None and _can_spare(attention):
        query, key, value = _heads_of_some(attention, rows, table, some.asking)
    else:
        query, key, value = _heads(attention, attention.qkv(rows), 3)
        # In fp32, like transformers' rotary embedding of the vision tower.
        cos, sin = (part[None].float() for part in table)
        query, key = (part.to(value.dtype) for part in backends.rotary(query.float(), key.float(), cos, sin))
        if some is not None:
            query = query.index_select(2, some.asking)
            key, value = (part if some.asked is None else part.index_select(2, some.asked) for part in (key, value))
    out = backends.attention(query, key, value, **options, scale=attention.scaling)
    return attention.proj(out[0].transpose(0, 1).flatten(1)), key


def _heads(attention, projected: torch.Tensor, parts: int) -> list[torch.Tensor]:
    """[T, parts * H * D] -> a list of `parts` tensors [1, H, T, D]."""
    heads = projected.unflatten(-1, (parts, attention.num_heads, -1)).permute(1, 2, 0, 3)
    return [part[None] for part in heads]


def _heads_of_some(
    attention, rows: torch.Tensor, table: tuple[torch.Tensor, ...], asking: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Queries [1, H, n, D] of the rows `asking`, and keys and values [1, H, T, D] of all rows. It spares the other rows
    the third of the projection that is for queries."""
    qkv = attention.qkv
    sizes = [qkv.out_features // 3, qkv.out_features // 3 * 2]
    weights, biases = (qkv.weight.split(sizes), (None, None) if qkv.bias is None else qkv.bias.split(sizes))
    (query,) = _heads(attention, linear(rows.index_select(0, asking), weights[0], biases[0]), 1)
    key, value = _heads(attention, linear(rows, weights[1], biases[1]), 2)
    turned = []
    for part, (cos, sin) in ((query, [own.index_select(0, asking) for own in table]), (key, table)):
        one, two = part.float().chunk(2, dim=1)  # halves of the heads, in place of queries and keys
        parts = backends.rotary(one, two, cos[None].float(), sin[None].float())
        turned.append(torch.cat(parts, dim=1).to(value.dtype))
    return turned[0], turned[1], value


def _can_spare(attention) -> bool:
    """Whether parts of the projection's weights may be used directly: only if it is a plain linear layer whose call has
    no other effect (adapters, quantization, sharded weights and hooks do have one)."""
    qkv = attention.qkv
    if type(qkv) is not torch.nn.Linear or type(qkv.weight) is not torch.nn.Parameter or "forward" in vars(qkv):
        return False
    hooks = (qkv._forward_pre_hooks, qkv._forward_hooks, qkv._backward_pre_hooks, qkv._backward_hooks)
    return attention.num_heads > 1 and qkv.out_features % 3 == 0 and not any(hooks)


def on_host(cu_seqlens: torch.Tensor) -> list[int]:
    """The borders as a list. Read once per forward pass, because every block is given the same tensor."""
    if cu_seqlens not in _ON_HOST:
        _ON_HOST[cu_seqlens] = cu_seqlens.tolist()
    return _ON_HOST[cu_seqlens]
