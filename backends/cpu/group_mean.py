"""Means of groups on a CPU: rows are added where they stand, group by group, without a copy of the tokens."""

import torch
from torch import Tensor
from torch.nn import functional


def worthwhile(tokens: Tensor, *_, **__) -> bool:
    """Where there are tokens, and it runs as it stands: a compiler makes one loop of the reference."""
    return tokens.numel() > 0 and not torch.compiler.is_compiling()


def group_mean(tokens: Tensor, labels: Tensor, counts: Tensor) -> Tensor:
    """See `ppe_npu.backends.group_mean`. A group's rows are added in raster order, as by the reference, bit for bit."""
    frames, groups = counts.shape
    wide = tokens.to(torch.promote_types(tokens.dtype, torch.float32)).flatten(0, 1)
    offsets = torch.arange(frames, device=tokens.device)[:, None] * groups
    # Those in no group come last, in a bag of their own.
    bag = torch.where(labels < 0, frames * groups, labels + offsets).flatten()
    first = functional.pad(counts.flatten().cumsum(0), (1, 0))
    sums = functional.embedding_bag(bag.sort(stable=True).indices, wide, first, mode="sum")[:-1]
    return sums.view(frames, groups, -1).div_(counts.clamp_min(1)[:, :, None]).to(tokens.dtype)
