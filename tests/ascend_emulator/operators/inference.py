"""Attention for inference: npu_prompt_flash_attention, npu_incre_flash_attention, npu_fused_infer_attention_score.

Emulated for BSH, BSND and BNSD in 16 bits, with masks, grouped heads and the number of valid keys in each sample. Not
emulated, and refused: packed tokens (TND), paged caches, quantization, position shifts, shared prefixes.
"""

from typing import Any

import torch
from torch import Tensor

from ascend_emulator import limits
from ascend_emulator.operators import attention, emulates


def _infer(
    name: str, query: Tensor, key: Tensor, value: Tensor, *, num_heads: int, num_key_value_heads: int,
    input_layout: str, scale: float, atten_mask: Tensor | None, sparse_mode: int, pre_tokens: int, next_tokens: int,
    key_lengths: list[int] | None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Output in the query's layout, and log-sum-exp of the scores, [B, heads, queries, 1]."""
    limits.inference_attention(name, query, key, value, num_heads, num_key_value_heads, input_layout)
    width = query.shape[-1] // num_heads if input_layout == "BSH" else query.shape[-1]
    form = attention.Layout(input_layout, width)
    parts = [form.split(tensor)[0] for tensor in (query, key, value)]
    batch, queries, keys = parts[0].shape[0], parts[0].shape[2], parts[1].shape[2]
    outputs, sums = [], []
    for sample, valid in enumerate(_valid(name, key_lengths, batch, keys)):
        mine = [parts[0][sample : sample + 1], *(part[sample : sample + 1, :, :valid] for part in parts[1:])]
        mask = _of_sample(name, atten_mask, sparse_mode, sample, (batch, queries, keys))
        options = attention.Options(mask, sparse_mode, pre_tokens, next_tokens, scale)
        output, maximum, total = attention.attend(*mine, options, torch.Generator())
        outputs.append(output)
        sums.append(maximum + total.log())
    return form.join([torch.cat(outputs)]), torch.cat(sums)


def _valid(name: str, lengths: list[int] | None, batch: int, keys: int) -> list[int]:
    """The number of valid keys of each sample; a single one is for all."""
    lengths = list(lengths or [keys])
    limits.require(len(lengths) == 1 or len(lengths) >= batch, name, "one length of keys for all, or one per sample")
    lengths = lengths * batch if len(lengths) == 1 else lengths[:batch]
    limits.require(all(0 < length <= keys for length in lengths), name, f"lengths of keys are from 1 to {keys}")
    return lengths


def _of_sample(name: str, mask: Tensor | None, mode: int, sample: int, shape: tuple[int, int, int]) -> Tensor | None:
    """A sample's part of the mask, [queries, keys]; the compressed one as it is."""
    if mask is None:
        return None
    batch, queries, keys = shape
    known = mask.dtype in (torch.bool, torch.uint8, torch.int8)
    limits.require(known and mask.is_contiguous(), name, "atten_mask is bool, int8 or uint8, and contiguous")
    if mode in (2, 3, 4):
        compressed = tuple(mask.shape) in ((2048, 2048), (1, 2048, 2048), (1, 1, 2048, 2048))
        limits.require(compressed, name, f"sparse_mode {mode} takes the compressed 2048 x 2048 mask")
        limits.attention_mask(mask.reshape(2048, 2048).bool(), mode, (batch, 1, queries, keys), packed=False)
        return mask
    limits.require(mode in (0, 1), name, f"no emulation of sparse_mode {mode}")
    if queries == 1 and tuple(mask.shape) == (batch, keys):
        return mask[sample : sample + 1]
    samples = mask.shape[0] if mask.dim() > 2 else 1
    shapes = [(queries, keys), (samples, queries, keys), (samples, 1, queries, keys)]
    fits = tuple(mask.shape) in shapes and samples in (1, batch)
    limits.require(fits, name, f"atten_mask is [S, S], or [1 or B, (1,) S, S] of {shape}, not {tuple(mask.shape)}")
    return mask.reshape(samples, queries, keys)[sample if samples > 1 else 0]


_FORM = ("num_heads", "num_key_value_heads", "input_layout", "atten_mask")
_BAND = ("sparse_mode", "pre_tokens", "next_tokens")


@emulates("npu_prompt_flash_attention", passes_on=(*_FORM, *_BAND))
def prompt_flash_attention(
    query: Tensor, key: Tensor, value: Tensor, scale_value: float, actual_seq_lengths_kv: list[int] | None, **form: Any
) -> Tensor:
    """For a whole prompt. Beware of next_tokens: with a mask, its default of 0 excludes all later keys."""
    name = "npu_prompt_flash_attention"
    return _infer(name, query, key, value, scale=scale_value, key_lengths=actual_seq_lengths_kv, **form)[0]


@emulates("npu_incre_flash_attention", passes_on=_FORM, ignores=("inner_precise",))
def incre_flash_attention(
    query: Tensor, key: Tensor, value: Tensor, scale_value: float, actual_seq_lengths: list[int] | None, **form: Any
) -> Tensor:
    """For one decoding step: a single query. actual_seq_lengths counts the keys."""
    name = "npu_incre_flash_attention"
    axis = 2 if form["input_layout"] == "BNSD" else 1
    limits.require(query.shape[axis] == 1, name, "takes one query")
    whole = {"sparse_mode": 1, "pre_tokens": limits.UNLIMITED, "next_tokens": limits.UNLIMITED}
    return _infer(name, query, key, value, scale=scale_value, key_lengths=actual_seq_lengths, **whole, **form)[0]


@emulates("npu_fused_infer_attention_score", passes_on=(*_FORM, *_BAND), ignores=("inner_precise",))
def fused_infer_attention_score(
    query: Tensor, key: Tensor, value: Tensor, scale: float, actual_seq_lengths_kv: list[int] | None,
    softmax_lse_flag: bool, **form: Any,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Either of the two others, by the number of queries; and the log-sum-exp of the scores, if asked for."""
    name = "npu_fused_infer_attention_score"
    output, sums = _infer(name, query, key, value, scale=scale, key_lengths=actual_seq_lengths_kv, **form)
    return output, sums if softmax_lse_flag else torch.empty(0)
