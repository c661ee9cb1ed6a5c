"""Density-peaks clustering on k nearest neighbours (DPC-KNN), batched over frames: the specification.

Source: Du et al. 2016; used on visual tokens by TCFormer and Chat-UniVi (arXiv 2311.08046, section 3.2).
"""

import torch

MAX_NEIGHBORS = 5  # the k of Chat-UniVi; fewer where a frame keeps few tokens


def dpc_knn(
    tokens: torch.Tensor,
    valid: torch.Tensor | None,
    budgets: torch.Tensor,
    max_groups: int,
    num_neighbors: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Group the tokens of every frame around its density peaks.

    With d_ij^2 = |x_i - x_j|^2 / C, the density of token i is rho_i = exp(-mean of d_ij^2 over its k nearest tokens,
    itself among them), its delta the distance to the nearest denser token (the largest distance of the frame where
    there is none). The tokens with the greatest delta * rho are centres; every other token joins its nearest centre.
    All of it is ranked in log space, where nothing underflows. Ties go to the lower index: of two equally dense tokens
    the first counts as the denser one.

    Args:
        tokens: [F, N, C] floating point; distances are taken in fp32 (fp64 for fp64 tokens).
        valid: [F, N] bool, False where a frame has no token, or None if every frame has N. A frame's tokens come first.
        budgets: [F] int64, groups of each frame, 1 <= budgets[f] <= its number of tokens.
        max_groups: M, at least the largest budget (a host number, so that no shape depends on device data).
        num_neighbors: [F] int64, k of each frame, at most its number of tokens and at most MAX_NEIGHBORS.

    Returns:
        centers: [F, M] int64, token index of each centre in descending score; entries from budgets[f] on are in range
            and mean nothing.
        labels: [F, N] int64, for each token the rank of its centre, -1 where not valid.
    """
    frames, count, _ = tokens.shape
    everywhere = torch.ones(frames, count, dtype=torch.bool, device=tokens.device) if valid is None else valid
    squared = _squared_distances(tokens, everywhere)
    log_density = _log_density(squared, num_neighbors)
    score = _log_delta(squared, log_density, everywhere) + log_density
    score = torch.where(everywhere, score, -torch.inf)
    order = torch.sort(score, dim=1, descending=True, stable=True).indices
    centers = order[:, :max_groups]
    rank = torch.empty_like(order).scatter_(1, order, torch.arange(count, device=tokens.device).expand_as(order))

    to_centers = squared.gather(1, centers[:, :, None].expand(-1, -1, count))
    unused = torch.arange(centers.shape[1], device=tokens.device) >= budgets[:, None]
    nearest = to_centers.masked_fill(unused[:, :, None], torch.inf).argmin(dim=1)
    labels = torch.where(rank < budgets[:, None], rank, nearest)
    return centers, torch.where(everywhere, labels, -1)


def _squared_distances(tokens: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
    """[F, N, N] d_ij^2; infinite where i or j is not valid, exactly zero on the diagonal, symmetric."""
    x = tokens.double() if tokens.dtype == torch.float64 else tokens.float()
    weight = valid[:, :, None].to(x.dtype)
    # A common offset of the tokens would eat the digits of the Gram matrix; distances do not see it.
    x = (x - (x * weight).sum(1, keepdim=True) / weight.sum(1, keepdim=True)) * weight
    gram = torch.bmm(x, x.transpose(1, 2))
    norms = gram.diagonal(dim1=1, dim2=2)
    squared = norms[:, :, None] + norms[:, None, :] - 2 * gram
    # A matrix product need not be symmetric to the last bit; ties must not depend on the side they are read from.
    squared = (0.5 / x.shape[-1]) * (squared + squared.transpose(1, 2))
    squared = squared.clamp_min(0)
    squared.diagonal(dim1=1, dim2=2).zero_()
    return squared.masked_fill(~(valid[:, :, None] & valid[:, None, :]), torch.inf)


def _log_density(squared: torch.Tensor, num_neighbors: torch.Tensor) -> torch.Tensor:
    """[F, N] minus the mean squared distance to the k nearest tokens, the token itself among them."""
    most = min(MAX_NEIGHBORS, squared.shape[-1])
    nearest = squared.topk(most, dim=-1, largest=False, sorted=True).values
    used = torch.arange(most, device=squared.device) < num_neighbors[:, None, None]
    return -torch.where(used, nearest, 0).sum(-1) / num_neighbors[:, None]


def _log_delta(squared: torch.Tensor, log_density: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
    """[F, N] log distance to the nearest denser token, or to the farthest pair's distance where there is none."""
    index = torch.arange(squared.shape[-1], device=squared.device)
    theirs, ours = log_density[:, None, :], log_density[:, :, None]
    denser = (theirs > ours) | ((theirs == ours) & (index[None, :] < index[:, None]))
    pair = valid[:, :, None] & valid[:, None, :]
    farthest = torch.where(pair, squared, 0).amax(dim=(1, 2))
    nearest = torch.where(denser & pair, squared, torch.inf).amin(dim=-1)
    return 0.5 * torch.minimum(nearest, farthest[:, None]).log()
