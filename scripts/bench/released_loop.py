"""The merge as a loop over frames with all operators of the released PPE code, as a baseline for the batched merge.

Written from a description of the released code (MouxiaoHuang/PPE @ 7b6aa7d), one image or frame at a time:
cdist, topk, a noisy density, [N, N] masks, centres by topk, whose rows are gathered, weights and index_add, records of
the merged token and the weight of each token (which are never read), then positions by a sort in fp64,
unique_consecutive, for which the host waits in every frame, and one gather after the other for each of the K.
"""

import torch
from torch import Tensor

NOISE = 1e-6


def gathered(values: Tensor, index: Tensor) -> Tensor:
    """[B, ..., C] rows of values [B, N, C] at index [B, ...]."""
    shape = [len(index)] + [1] * (index.dim() - 1)
    batch = torch.arange(len(values), device=values.device).view(shape).expand_as(index)
    return values[batch, index]


def cluster(x: Tensor, budget: int, neighbors: int, noise: float = NOISE) -> Tensor:
    """[1, N] labels of one frame [1, N, C]: the rank of each token's centre by descending score."""
    channels = x.shape[-1]
    distance = torch.cdist(x.float(), x.float()) / channels**0.5
    nearest = torch.topk(distance, k=neighbors, dim=-1, largest=False).values
    density = (-(nearest**2).mean(dim=-1)).exp()
    density = density + torch.rand(density.shape, device=x.device, dtype=density.dtype) * noise
    denser = (density[:, None, :] > density[:, :, None]).type(x.dtype)
    farthest = distance.flatten(1).max(dim=-1)[0][:, None, None]
    delta, _ = (distance * denser + farthest * (1 - denser)).min(dim=-1)
    centers = torch.topk(delta * density, k=budget, dim=-1).indices
    labels = gathered(distance, centers).argmin(dim=1)
    batch = torch.arange(len(x), device=x.device)[:, None].expand_as(centers)
    own = torch.arange(budget, device=x.device)[None].expand_as(centers)
    labels[batch.reshape(-1), centers.reshape(-1)] = own.reshape(-1)
    return labels


def means(x: Tensor, labels: Tensor, budget: int) -> Tensor:
    """[1, M, C] means of one frame's groups, with all weights 1, summed in the tokens' dtype."""
    batch, count, channels = x.shape
    weights = x.new_ones(batch, count, 1)
    index = (labels + torch.arange(batch, device=x.device)[:, None] * budget).reshape(-1)
    sums = weights.new_zeros(batch * budget, 1).index_add_(0, index, weights.reshape(-1, 1)) + 1e-6
    share = weights / sums[index.view(batch, count)]
    source = (x * share).reshape(batch * count, channels).type(x.dtype)
    merged = x.new_zeros(batch * budget, channels).index_add_(0, index, source).reshape(batch, budget, channels)
    records(labels, share)
    return merged


def records(labels: Tensor, share: Tensor) -> tuple[Tensor, Tensor]:
    """The merged token [1, N] of each token of one frame, and the token's weight [1, N, 1] in it."""
    tokens = torch.arange(labels.shape[1], device=labels.device)[None].repeat(len(labels), 1)
    before = share.new_ones(*labels.shape, 1)
    weight = before * gathered(share, tokens)
    return gathered(labels[..., None], tokens).squeeze(-1), weight / weight.max(dim=1, keepdim=True)[0]


def positions(labels: Tensor, rows: Tensor, k: int) -> Tensor:
    """[3k, M] positions, from the positions [3, N] of one frame: those of each group's last k members, last first; a
    smaller group's members repeat."""
    weights = torch.ones(labels.shape[1], device=labels.device)
    keys = torch.stack([labels[0].float().double(), weights.float().double()], dim=1)
    order = keys.sort(dim=0, stable=True).indices[:, 0]
    _, sizes = torch.unique_consecutive(labels[0][order].float(), return_counts=True)
    last, back, members = sizes.cumsum(0) - 1, sizes * 0, []
    for turn in range(k):  # one position after the other, as released
        if turn:
            back = back - 1
            back = back + ((back + sizes) <= 0) * -back
        members.append(order.gather(0, last + back)[:, None])
    picked = torch.cat(members, dim=-1)
    chosen = [rows.index_select(1, picked[:, turn])[None] for turn in range(k)]
    return torch.cat(chosen).transpose(0, 1).flatten(0, 1)


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
