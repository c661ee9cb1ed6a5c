"""CDPruner: keeps tokens that differ from each other and relate to the question (arXiv 2506.10967, section 3)."""

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
    """The greedy most probable set of a determinantal point process with the kernel L = diag(q) S diag(q), where S
    holds the tokens' cosines, and q is minus the mean cosine of a token's image embedding to the question's, scaled to
    0..1. Each step takes the token that makes det(L_kept) largest, found by an incremental Cholesky decomposition.

    The published code takes roots of negative numbers once the kernel's rank is exhausted, and keeps fewer tokens than
    it was asked for. Here tokens whose remainder is within rounding error by then are taken in descending order of q.
    The published code scales q to 0..1 over the whole batch; here it is scaled in each frame.

    CLIP embeds images and texts in one space. For models without such embeddings, tokens and text embeddings are used
    in their place. (When the method is run alone, a view's tower_keys are used as image embeddings if they are as wide
    as its text.) If a prompt has no text, q is 1 for all tokens.

    Args:
        ratio: fraction of a frame's tokens to keep: ceil(n * ratio) of n.
        dropped: what becomes of the other tokens, see choosing.dropped.
        released: scale q over the whole batch, as in the published code, so that other samples affect the choice.
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
        """[F, N] fp32, q in 0..1."""
        keys, text = view.tower_keys, view.text
        image = view.tokens if keys is None or keys.shape[-1] != text.shape[-1] else keys
        there = torch.ones(text.shape[:2], dtype=torch.bool, device=text.device)
        there = there if view.text_valid is None else view.text_valid
        # The mean of the cosines to all text tokens is the product with the mean of their directions.
        mean = unit(text).masked_fill(~there[:, :, None], 0).sum(1) / there.sum(1, keepdim=True).clamp_min(1)
        found = -(unit(image) * mean[:, None]).sum(-1)
        if self.released:
            return spread(found.flatten()[None], view.present.flatten()[None]).view_as(found)
        return torch.where(there.any(1, keepdim=True), spread(found, view.present), 1.0)


def most_probable(view: View, quality: torch.Tensor) -> torch.Tensor:
    """[F, most] int64 tokens in order of choice. quality: [F, N] in 0..1."""
    kernel = cosines(view.tokens).mul_(quality[:, :, None]).mul_(quality[:, None])
    left = kernel.diagonal(dim1=1, dim2=2).masked_fill(~view.present, -math.inf)
    # A pivot is a difference of at most one product per step, each with a rounding error of at most eps.
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
