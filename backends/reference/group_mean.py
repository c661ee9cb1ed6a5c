"""Mean of the tokens of each group: the specification."""

import torch


def group_mean(tokens: torch.Tensor, labels: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
    """Average the tokens that share a label.

    Args:
        tokens: [F, N, C] floating point.
        labels: [F, N] int64 in [0, M), or -1 for a token in no group.
        counts: [F, M] int64, members per group (0: an empty group, whose mean is zero).

    Returns:
        [F, M, C] in the dtype of `tokens`; summed in fp32 (fp64 for fp64 tokens), in raster order. Differentiable in
        `tokens`.
    """
    frames, _, channels = tokens.shape
    groups = counts.shape[1]
    wide = tokens.double() if tokens.dtype == torch.float64 else tokens.float()
    # One extra group per frame collects the tokens that are in no group.
    slot = torch.where(labels < 0, groups, labels) + torch.arange(frames, device=labels.device)[:, None] * (groups + 1)
    sums = wide.new_zeros(frames * (groups + 1), channels).index_add_(0, slot.flatten(), wide.flatten(0, 1))
    sums = sums.view(frames, groups + 1, channels)[:, :groups]
    return (sums / counts.clamp_min(1)[:, :, None]).to(tokens.dtype)
