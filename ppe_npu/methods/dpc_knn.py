"""Density-peaks clustering with k nearest neighbours, as Chat-UniVi (arXiv 2311.08046, section 3.2) merges tokens.

Let d_ij be the distance of two tokens divided by sqrt(C). A token's density is rho_i = exp(-mean of d_ij^2 over its
nearest neighbours), and delta_i is its distance to the nearest denser token. The tokens of largest rho_i * delta_i are
the centres, every other token joins the nearest centre, and a group becomes its mean. The released code adds noise to
the densities; here ties go to the lower index instead. Other settings of the released code: ppe_npu.released.
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
        ratio: fraction of a frame's tokens to keep: ceil(n * ratio) of n.
        neighbors: the number of nearest neighbours, the token itself included, that define its density; fewer where a
            frame keeps fewer tokens: half of these, but 1 to 3. Above 5, accelerators use torch's operators instead of
            kernels.
        order: of a frame's merged tokens: "raster" order of their representatives, or descending "score" (released).
        ties: which of equally dense tokens counts as the denser one: the "first"; or "none" of them, so that equal
            tokens all become centres (the released code without its noise).
    """

    ratio: float = share(0.45)
    neighbors: int = setting(5, least=1)
    order: Literal["raster", "score"] = "raster"
    ties: Literal["first", "none"] = "first"

    blanks = False  # the operator keeps padding and what is not finite apart

    def group(self, view: View) -> Grouping:
        with torch.no_grad():
            fewer = (view.num_kept // 2).clamp(1, 3)
            neighbors = torch.where(view.num_kept >= self.neighbors, self.neighbors, fewer)
            centers, labels = backends.dpc_knn(
                view.tokens.detach(), view.valid, view.num_kept, view.most, neighbors,
                strict=self.ties == "none", most_neighbors=self.neighbors if self.neighbors <= view.most else 3,
            )  # fmt: skip
            return Grouping.from_centers(centers, labels, view.num_kept, self.order)
