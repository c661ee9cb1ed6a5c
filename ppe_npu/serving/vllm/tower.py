"""Runs vLLM's vision towers on the patches of kept cells, through the argument that vLLM's encoder graphs use.

The tower computes its metadata for whole grids, and the entries of the kept patches are selected from it: a patch keeps
the position that it has in its picture, and the patches of a frame attend to each other.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from vllm.model_executor.layers.attention import MMEncoderAttention

from ppe_npu.errors import InputError
from ppe_npu.models.pixels import KeptPatches

_OF_PATCHES = ("rotary_pos_emb_cos", "rotary_pos_emb_sin", "pos_embeds")
_BORDERS = ("cu_seqlens", "max_seqlen", "max_seqlen_full", "sequence_lengths", "sequence_lengths_full")
_WINDOWS = (
    *("window_index", "reverse_indices"),
    *("cu_window_seqlens", "max_seqlen_window", "sequence_lengths_window"),
)


def run_on_kept(tower: Any, pixels: torch.Tensor, kept: KeptPatches) -> torch.Tensor:
    """[kept tokens, C] output of the tower for the kept patches [P, values], in any dtype that the tower accepts."""
    return tower(pixels, None, encoder_metadata=_metadata(tower, kept))


def _metadata(tower: Any, kept: KeptPatches) -> dict[str, Any]:
    made = dict(tower.prepare_encoder_metadata(kept.grid.tolist()))
    unknown = sorted(set(made) - {*_OF_PATCHES, *_BORDERS, *_WINDOWS})
    if unknown:
        raise InputError(f"{type(tower).__name__} takes {', '.join(unknown)}: this release of vLLM is not supported")
    picked, out = kept.picked, {}
    if "window_index" in made:
        index = made["window_index"].cpu()
        order, borders = kept.windows(index, _window_borders(tower, kept.grid))
        patches = kept.tokens[index].repeat_interleave(kept.merged).nonzero()[:, 0]
        picked = lambda values: values.index_select(0, patches.to(values.device))  # noqa: E731
        out = {"window_index": order.to(tower.device), "reverse_indices": order.argsort().to(tower.device)}
        ends, most, lengths = _borders(tower, borders.numpy())
        out |= {"cu_window_seqlens": ends, "max_seqlen_window": most, "sequence_lengths_window": lengths}
    out |= {name: picked(made[name]) for name in _OF_PATCHES if name in made}
    whole = np.concatenate([[0], np.cumsum(kept.frames.numpy())]).astype(np.int32)
    ends, most, lengths = _borders(tower, whole)
    said = {"cu_seqlens": ends, "max_seqlen": most, "max_seqlen_full": most}
    said |= {"sequence_lengths": lengths, "sequence_lengths_full": lengths}
    return out | {name: said[name] for name in _BORDERS if name in made}


def _window_borders(tower: Any, grids: torch.Tensor) -> torch.Tensor:
    """[windows + 1] int32 borders of the windows of whole grids, counted in patches."""
    out, last = [torch.zeros(1, dtype=torch.int32)], 0
    for grid in grids.tolist():
        _, ends = tower.get_window_index_thw(*grid)
        out.append(ends + last)
        last = int(out[-1][-1])
    return torch.cat(out)


def _borders(tower: Any, ends: np.ndarray) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """(borders, longest, all lengths): attention's arguments for runs of patches that attend only to themselves."""
    backend, device, attention = tower.attn_backend, tower.device, MMEncoderAttention
    most = torch.tensor(attention.compute_max_seqlen(backend, ends), dtype=torch.int32)
    lengths = attention.maybe_compute_seq_lens(backend, ends, device)
    width = getattr(tower, "hidden_size", None) or tower.embed_dim
    padded = getattr(tower, "fp8_padded_hidden_size", None)
    heads = getattr(tower, "tp_size", 1)
    borders = attention.maybe_recompute_cu_seqlens(backend, ends, width, heads, device, fp8_padded_hidden_size=padded)
    return borders, most, lengths
