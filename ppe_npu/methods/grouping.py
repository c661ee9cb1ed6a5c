"""Grouping: which token of a frame goes to which group. A plan that is made once and then applied to any tensor."""

from dataclasses import dataclass

import torch

from ppe_npu import backends
from ppe_npu.engine.members import Entries


@dataclass(frozen=True)
class Grouping:
    """A partition of the tokens of F frames into at most M groups a frame.

    Args:
        labels: [F, N] int64, group of each token, -1 where a frame has no token.
        counts: [F, M] int64, tokens in each group; 0 from a frame's budget on.
        representatives: [F, M] int64, token index of each group's centre.
    """

    labels: torch.Tensor
    counts: torch.Tensor
    representatives: torch.Tensor

    @classmethod
    def from_centers(cls, centers: torch.Tensor, labels: torch.Tensor, budgets: torch.Tensor, order: str) -> "Grouping":
        """From centres [F, M] and labels [F, N] by rank of score; `order` "raster" renumbers the groups by the place of
        their representatives, "score" keeps the ranks. Entries of `centers` from budgets[f] on are ignored."""
        slots = torch.arange(centers.shape[1], device=centers.device)
        used = slots < budgets[:, None]
        if order == "raster":
            beyond = labels.shape[1]
            centers, place = torch.where(used, centers, beyond).sort(dim=1, stable=True)
            new_label = torch.empty_like(place).scatter_(1, place, slots.expand_as(place))
            labels = torch.where(labels < 0, -1, new_label.gather(1, labels.clamp_min(0)))
        centers = torch.where(used, centers, 0)
        counts = (labels[:, None, :] == slots[:, None]).sum(-1)
        return cls(labels, counts, centers)

    def apply(self, tokens: torch.Tensor) -> torch.Tensor:
        """Means of the groups: [F, N, C] -> [F, M, C], differentiable, accumulated in fp32."""
        return backends.group_mean(tokens, self.labels, self.counts)

    def members(
        self, k: int, rule: str, tokens: torch.Tensor | None = None, held: torch.Tensor | None = None
    ) -> torch.Tensor:
        """k members of every group, repeated in turn where a group has fewer: [F, M, k] int64.

        Tokens that were merged before hold several original tokens each, and a group of them draws its k from all that
        its members hold. Without `held` a token stands for itself.

        Args:
            rule: "last", the last ones in order, last first; "spread", evenly over the raster-sorted ones, last first;
                "nearest", those of the members nearest to the representative (itself first among equals), one of each
                member in turn, listed in raster order, last first; "nearest_first", the same listed by nearness.
            tokens: [F, N, C], needed by the two rules of nearness.
            held: [F, N, H] int64, the original tokens that each token holds, repeated in turn; rising with the raster.

        Returns:
            token indices, or values of `held`.
        """
        distance = self._distance(tokens) if rule.startswith("nearest") else None
        return Entries.of(self.labels, held, self.counts.shape[1]).choose(k, rule, distance)

    def _distance(self, tokens: torch.Tensor) -> torch.Tensor:
        """[F, N] distance of each token to the representative of its group; -1 for the representative itself,
        which comes before tokens that are equal to it."""
        wide = tokens.double() if tokens.dtype == torch.float64 else tokens.float()
        center = self.representatives.gather(1, self.labels.clamp_min(0))
        frames, count = center.shape
        first = count * torch.arange(frames, device=tokens.device)[:, None]
        # Whole rows are copied, not numbers; and a norm reads the differences once, where squares would be written.
        centers = wide.flatten(0, 1).index_select(0, (center + first).flatten()).view_as(wide)
        distance = torch.linalg.vector_norm(centers.sub_(wide), dim=-1)
        return torch.where(torch.arange(count, device=tokens.device) == center, -1, distance)
