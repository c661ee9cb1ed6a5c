"""Density-peaks clustering with k nearest neighbours, as Chat-UniVi (arXiv 2311.08046, section 3.2) merges tokens.

With d_ij the distance of two tokens over sqrt(C), a token's density is rho_i = exp(-mean of d_ij^2 over its nearest
neighbours) and delta_i its distance to the nearest token that is denser. The tokens with the largest rho_i * delta_i
are the centres, every other token joins the nearest centre, and a group becomes its mean. The released code adds noise
to the densities; here ties fall to the lower index instead. Other settings of the released code: ppe_npu.released.
"""

from dataclasses import dataclass
from typing import Literal

import torch

from ppe_npu import backends
from ppe_npu.methods.base import Method, register, share
from ppe_npu.methods.grouping import Grouping
from ppe_npu.methods.view import View
from ppe_npu.settings import setting


@register("dpc_knn")
@dataclass(frozen=True)
class DPCKNN(Method):
    """DPC-KNN (Du et al., 2016), on the tokens of each frame.

    Args:
        ratio: share of a frame's tokens that is kept: ceil(n * ratio) of n.
        neighbors: how many nearest neighbours make a density, the token itself included; fewer where a frame keeps
            fewer tokens (num_neighbors). Above 5 accelerators take torch's operators in place of kernels.
        order: of the merged tokens of a frame: "raster" of their representatives, or descending "score" (released).
        ties: which of equally dense tokens counts as the denser one: the "first", or "none" of them, by which equal
            tokens all become centres (the released code without its noise).
    """

    ratio: float = share(0.45)
    neighbors: int = setting(5, least=1)
    order: Literal["raster", "score"] = "raster"
    ties: Literal["first", "none"] = "first"

    def group(self, view: View) -> Grouping:
        with torch.no_grad():
            neighbors = num_neighbors(view.num_kept, self.neighbors)
            centers, labels = backends.dpc_knn(
                view.tokens.detach(), view.valid, view.num_kept, view.most, neighbors,
                strict=self.ties == "none", most_neighbors=self.neighbors if self.neighbors <= view.most else 3,
            )  # fmt: skip
            return Grouping.from_centers(centers, labels, view.num_kept, self.order)


def num_neighbors(num_kept: torch.Tensor, most: int = 5) -> torch.Tensor:
    """How many neighbours count in each cell: `most`, and where fewer tokens are kept min(3, max(half of them, 1))."""
    return torch.where(num_kept >= most, most, (num_kept // 2).clamp(1, 3))
