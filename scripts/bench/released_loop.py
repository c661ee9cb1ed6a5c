"""The merge as a loop over frames, by the operators of the released PPE code: what the batched merge is compared with.

Own code after a description of the released one (MouxiaoHuang/PPE @ 7b6aa7d, an image or a frame at a time): cdist,
topk, a noisy density, masks of [N, N], centres by topk, weights and index_add, then positions by a sort in fp64 and
unique_consecutive, for which the host waits in every frame.
"""

import torch
from torch import Tensor

NOISE = 1e-6


def cluster(x: Tensor, budget: int, neighbors: int, noise: float = NOISE) -> Tensor:
    """Labels [1, N] of one frame [1, N, C]: the rank of each token's centre in falling score."""
    channels = x.shape[-1]
    distance = torch.cdist(x.float(), x.float()) / channels**0.5
    nearest = torch.topk(distance, k=neighbors, dim=-1, largest=False).values
    density = (-(nearest**2).mean(dim=-1)).exp()
    density = density + torch.rand_like(density) * noise
    denser = (density[:, None, :] > density[:, :, None]).to(x.dtype)
    farthest = distance.flatten(1).max(dim=-1).values[:, None, None]
    delta = (distance * denser + farthest * (1 - denser)).min(dim=-1).values
    centers = torch.topk(delta * density, k=budget, dim=-1).indices[0]
    labels = distance[0, centers].argmin(dim=0)
    labels[centers] = torch.arange(budget, device=x.device)
    return labels[None]


def means(x: Tensor, labels: Tensor, budget: int) -> Tensor:
    """[1, M, C] means of the groups of one frame, by weights of one, summed in the tokens' dtype."""
    weights = x.new_ones(x.shape[1], 1)
    share = weights / (x.new_zeros(budget, 1).index_add_(0, labels[0], weights) + 1e-6)[labels[0]]
    return x.new_zeros(budget, x.shape[-1]).index_add_(0, labels[0], x[0] * share)[None]


def positions(labels: Tensor, rows: Tensor, k: int) -> Tensor:
    """[3k, M] of the positions [3, N] of one frame: the last k members of each group, last first, in turn."""
    keys = torch.stack([labels[0].double(), torch.ones_like(labels[0], dtype=torch.float64)], dim=1)
    order = keys.sort(dim=0, stable=True).indices[:, 0]
    _, sizes = torch.unique_consecutive(labels[0][order], return_counts=True)
    last = sizes.cumsum(0) - 1
    pick = torch.arange(k, device=labels.device)[:, None] % sizes[None]
    return rows[:, order[last[None] - pick]].flatten(0, 1)


def merge(x: Tensor, rows: Tensor, budget: int, neighbors: int, k: int, noise: float = NOISE) -> tuple[Tensor, Tensor]:
    """Merged tokens [F, M, C] and their positions [F, 3k, M] of frames [F, N, C] with positions [F, 3, N]."""
    tokens, places = [], []
    for frame, positions_of_frame in zip(x, rows):
        labels = cluster(frame[None], budget, neighbors, noise)
        tokens.append(means(frame[None], labels, budget))
        places.append(positions(labels, positions_of_frame, k))
    return torch.cat(tokens), torch.stack(places)


def cluster_frames(x: Tensor, budget: int, neighbors: int, noise: float = NOISE) -> Tensor:
    """Labels [F, N] of frames [F, N, C]."""
    return torch.cat([cluster(frame[None], budget, neighbors, noise) for frame in x])


def means_of_frames(x: Tensor, labels: Tensor, budget: int) -> Tensor:
    """[F, M, C] means of frames [F, N, C] with labels [F, N]."""
    return torch.cat([means(frame[None], some[None], budget) for frame, some in zip(x, labels)])
