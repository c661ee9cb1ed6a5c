"""CDPruner: tokens that are unlike each other and belong to the question (arXiv 2506.10967, section 3)."""

import math
from dataclasses import dataclass

import torch

from ppe_npu.methods.base import Method, register, share
from ppe_npu.methods.choosing import cosines, dropped, row, spread, unit
from ppe_npu.methods.grouping import Grouping
from ppe_npu.methods.view import View


@register("cdpruner")
@dataclass(frozen=True)
class CDPruner(Method):
    """The greedy most probable set of a determinantal point process with the kernel L = diag(q) S diag(q): S the
    tokens' cosines, q minus the mean cosine of a token's image embedding and the question's, brought to 0..1. A step
    takes the token that makes det(L_kept) largest, which an incremental Cholesky decomposition finds.

    The published code takes roots of negative numbers once the kernel's rank is used up, and keeps fewer tokens than it
    was asked for. Here what is left of a token by then is within rounding, and the rest is filled up by falling q. It
    brings q to 0..1 over the whole batch: here in each frame.

    CLIP has embeddings of images and texts in one space. Where a model has none its tokens and its text's embeddings
    stand in for them. (A view's tower_keys are taken as image embeddings where they are as wide as its text.) A prompt
    without text counts all tokens alike.

    Args:
        ratio: share of a frame's tokens that is kept: ceil(n * ratio) of n.
        dropped: what becomes of the others, see choosing.dropped.
        released: q over the whole batch, as the published code has it: mates change the choice.
    """

    ratio: float = share(0.25)
    dropped: str = dropped()
    released: bool = False

    needs = frozenset({"tokens", "text"})

    def group(self, view: View) -> Grouping:
        view.require("cdpruner", "tokens", "text")
        quality = self.relevance(view)
        return Grouping.of_kept(view, most_probable(view, quality), self.dropped)

    def relevance(self, view: View) -> torch.Tensor:
        """[F, N] fp32 in 0..1."""
        keys, text = view.tower_keys, view.text
        image = view.tokens if keys is None or keys.shape[-1] != text.shape[-1] else keys
        there = torch.ones(text.shape[:2], dtype=torch.bool, device=text.device)
        there = there if view.text_valid is None else view.text_valid
        # The mean of the cosines to each is the product with the mean of their directions.
        mean = unit(text).masked_fill(~there[:, :, None], 0).sum(1) / there.sum(1, keepdim=True).clamp_min(1)
        found = -(unit(image) * mean[:, None]).sum(-1)
        if self.released:
            return spread(found.flatten()[None], view.present.flatten()[None]).view_as(found)
        return torch.where(there.any(1, keepdim=True), spread(found, view.present), 1.0)


def most_probable(view: View, quality: torch.Tensor) -> torch.Tensor:
    """[F, most] int64 tokens in order of choice, by their quality [F, N] in 0..1."""
    kernel = cosines(view.tokens).mul_(quality[:, :, None]).mul_(quality[:, None])
    left = kernel.diagonal(dim1=1, dim2=2).masked_fill(~view.present, -math.inf)
    # A pivot's error is that of the products it is the difference of: at most one a step, each within eps.
    least = torch.finfo(torch.float32).eps * view.most
    order = torch.where(view.present, quality, -math.inf)
    factors = kernel.new_zeros(*quality.shape, view.most)
    chosen: list[torch.Tensor] = []
    for step in range(view.most):
        open_ = (left > least).any(1, keepdim=True)
        index = torch.where(open_, left, order).argmax(1, keepdim=True)
        pivot = torch.where(open_, left.gather(1, index), math.inf)
        own = row(factors[:, :, :step], index)
        factor = (row(kernel, index) - torch.bmm(factors[:, :, :step], own[:, :, None])[:, :, 0]) / pivot.sqrt()
        factors[:, :, step] = factor
        left = (left - factor.square()).scatter(1, index, -math.inf)
        order = order.scatter(1, index, -math.inf)
        chosen.append(index)
    return torch.cat(chosen, dim=1)
