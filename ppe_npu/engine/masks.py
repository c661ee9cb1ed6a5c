"""4D attention masks [B, heads or 1, L, L] of a compressed prompt."""

from dataclasses import dataclass

import torch
from torch.nn.functional import pad


@dataclass(frozen=True)
class Masking:
    """How attention learns which places are padding or otherwise masked.

    Args:
        given: the 4D mask that the model was given, or None.
        ready: make the 4D mask of a padded stage (bool, True = attend), for attention that takes one.
        apart: give a padded stage segments instead of a mask, for attention that takes them.
    """

    given: torch.Tensor | None = None
    ready: bool = False
    apart: bool = False


def padded_causal_mask(real: torch.Tensor) -> torch.Tensor:
    """[B, 1, L, L] bool, True = attend: every place sees the real ones up to itself, and padding also sees itself.

    Args:
        real: [B, L] bool, False at padding.
    """
    eye = torch.eye(real.shape[1], dtype=torch.bool, device=real.device)
    lower = torch.ones_like(eye).tril()
    return ((lower & real[:, None, :]) | eye)[:, None]


def key_bias(sizes: torch.Tensor, dtype: torch.dtype, room: int = 0) -> torch.Tensor:
    """[B, T], fp32 or wider: what attention adds to each key's scores, so that a place of size s counts as s places.

    Args:
        sizes: [B, L] int64 of the places that are filled. dtype: the model's. room: T, if it is more than L.
    """
    return pad(sizes.to(torch.promote_types(dtype, torch.float32)).log(), (0, max(room - sizes.shape[1], 0)))


def proportional_mask(
    mask: torch.Tensor | None, sizes: torch.Tensor, hidden: torch.Tensor, room: int = 0
) -> torch.Tensor:
    """[B, heads or 1, Q, T] what attention adds to its scores so that a place of size s counts as s places.

    Args:
        mask: [B, heads or 1, Q, T], bool (True = attend) or additive; T may include places that are still empty. None:
            every place sees those up to itself.
        sizes: [B, L] int64 of the places that are filled, L at most T. hidden: [B, Q, C], for shape and dtype.
        room: how many places a cache of fixed length has: without a mask, T.
    """
    if mask is None:
        queries, keys = hidden.shape[1], sizes.shape[1]
        mask = torch.ones(queries, keys, dtype=torch.bool, device=sizes.device).tril(keys - queries)[None, None]
    mask = pad(mask, (0, max(room - mask.shape[-1], 0)))
    bias = key_bias(sizes, hidden.dtype, mask.shape[-1])[:, None, None].to(mask.device)
    if mask.dtype == torch.bool:
        return bias.to(hidden.dtype).masked_fill(~mask, torch.finfo(hidden.dtype).min)
    return (mask + bias).to(mask.dtype).clamp_min(torch.finfo(mask.dtype).min)


def seen_places(mask: torch.Tensor) -> torch.Tensor:
    """[B, L] how many places each place may see, by the first head of a mask (bool, or additive with any bias)."""
    return (mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min / 2)[:, 0].sum(-1)


def picked_mask(mask: torch.Tensor, sources: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
    """[B, heads or 1, L, L] the rows and columns of a mask [B, heads or 1, S, S] that the kept tokens stand for.

    Args:
        mask: bool or additive.
        sources: [B, L] the column that each place stands for. real: [B, L] bool; padding sees itself.
    """
    length = real.shape[1]
    rows = mask.gather(2, sources[:, None, :, None].expand(-1, mask.shape[1], -1, mask.shape[-1]))
    picked = rows.gather(3, sources[:, None, None, :].expand(-1, mask.shape[1], length, -1))
    shut, open_ = (False, True) if mask.dtype == torch.bool else (torch.finfo(mask.dtype).min, 0.0)
    # The softmax of a row that may see nothing is undefined.
    alone = ~real[:, :, None] & torch.eye(length, dtype=torch.bool, device=real.device)
    return picked.masked_fill(~real[:, None, None, :], shut).masked_fill(alone[:, None], open_)
