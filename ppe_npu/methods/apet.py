"""ApET: keeps the tokens that a few others reconstruct worst (arXiv 2602.19870), without attention."""

import math
from dataclasses import dataclass, replace

import torch

from ppe_npu.errors import InputError
from ppe_npu.methods.base import Method, register, share
from ppe_npu.methods.choosing import best, cosines, exact, rounding, row
from ppe_npu.methods.grouping import Grouping
from ppe_npu.methods.view import View
from ppe_npu.settings import setting


@register("apet")
@dataclass(frozen=True)
class ApET(Method):
    """With B the k basis tokens (farthest-point samples by squared distance), a token's approximation is
    B^T (B B^T + ridge I)^-1 B x_i, and its error is the length of the residual. The tokens of largest error stay, each
    other one joins the kept token that is most like it (by cosine), and a group becomes its mean.

    The published code starts sampling at a random token; here it starts at the token farthest from the frame's mean, or
    at fps_start. The published code mixes the k basis tokens into the slots of the k kept tokens of least error, in the
    order of these slots, so that features of one place get the position of another, and lets the other tokens join only
    the M - k of largest error. Here no slot is replaced and tokens may join any of the M, so that M <= k works, too,
    where the published code crashes. It compares tokens in bf16, where many cosines are equal; here fp32 is used, and
    ties go to the first.

    Args:
        ratio: fraction of a frame's tokens to keep: int(n * ratio) of n.
        basis: the number of basis tokens (k), fewer where a frame has fewer tokens.
        ridge: added to the diagonal; the published step inside the decoder, at layer 16, uses 0.1.
        fps_start: the token at which sampling starts, or null. A frame that does not have this token starts at its last
            one.
        released: as in the published code, with the basis tokens in other tokens' slots.
        mixed: with released, the weight of the basis token in such a slot: 0.5 for Qwen, 1 for LLaVA.
    """

    ratio: float = share(0.333)
    basis: int = setting(10, least=1)
    ridge: float = setting(1e-5, above=0)
    fps_start: int | None = setting(None, least=0, remedy="give a token's index in each frame, from 0, or null")
    released: bool = False
    mixed: float = setting(0.5, above=0, most=1)

    def __post_init__(self):
        super().__post_init__()
        if not self.released and self.mixed != type(self).mixed:
            raise InputError(f"apet mixed={self.mixed} without released: nothing is mixed; give released=true, too")

    def kept(self, tokens: int) -> int:
        return max(int(tokens * self.ratio), 1)

    def group(self, view: View) -> Grouping:
        view.require("apet", "tokens")
        tokens = view.tokens.float()
        basis = farthest_samples(tokens, view.present, min(self.basis, tokens.shape[1]), self.fps_start)
        kept = best(residuals(tokens, basis, self.ridge), view)
        if not self.released:
            return Grouping.of_kept(view, kept, "merge")
        return self._replaced(view, kept, basis)

    def _replaced(self, view: View, kept: torch.Tensor, basis: torch.Tensor) -> Grouping:
        """The published groups: the kept tokens of least error form groups of one, and are mixed with basis tokens."""
        plain = Grouping.of_kept(view, kept, "drop")
        first = (view.num_kept - basis.shape[1]).clamp_min(1)[:, None]
        takes = torch.zeros_like(plain.labels, dtype=torch.bool)
        takes.scatter_(1, kept, torch.arange(kept.shape[1], device=kept.device) < first)
        alike = cosines(view.tokens).masked_fill_(~takes[:, None], -2.0)
        joined = plain.labels.gather(1, alike.argmax(-1))
        labels = torch.where((plain.labels < 0) & view.present, joined, plain.labels)
        slots = torch.arange(kept.shape[1], device=kept.device)
        alone = ~takes.gather(1, plain.representatives) & (slots < view.num_kept[:, None])
        number = (alone.long().cumsum(1) - 1).clamp(0, basis.shape[1] - 1)
        mixed = torch.where(alone, basis.gather(1, number), -1)
        made = Grouping.of(labels, plain.representatives)
        return Mixed(made.labels, made.counts, made.representatives, mixed=mixed, part=self.mixed)


@dataclass(frozen=True)
class Mixed(Grouping):
    """A grouping that mixes tokens from other places into some of its groups, as the published code does.

    Args:
        mixed: [F, M] int64, the token that is mixed into each group, or -1.
        part: its weight there.
    """

    mixed: torch.Tensor | None = None
    part: float = 0.5

    def apply(self, tokens: torch.Tensor) -> torch.Tensor:
        means = super().apply(tokens)
        others = tokens.gather(1, self.mixed.clamp_min(0)[:, :, None].expand_as(means))
        return torch.where(self.mixed[:, :, None] < 0, means, (1 - self.part) * means + self.part * others)

    def to(self, device: torch.device) -> Grouping:
        made = super().to(device)
        return replace(self, **vars(made), mixed=self.mixed.to(device, non_blocking=True))


def farthest_samples(tokens: torch.Tensor, present: torch.Tensor, count: int, start: int | None) -> torch.Tensor:
    """[F, count] int64 farthest-point samples of tokens [F, N, C] fp32, which are zero where absent. Each sample is the
    token farthest from its nearest earlier sample. If a cell has too few tokens, its first one is repeated."""
    if start is None:
        mean = tokens.sum(1, keepdim=True) / present.sum(1)[:, None, None]
        away = (tokens - mean).square().sum(-1).masked_fill(~present, -math.inf)
        chosen = [away.argmax(1, keepdim=True)]
    else:
        chosen = [(present.sum(1, keepdim=True) - 1).clamp_max(start)]
    nearest = torch.full(tokens.shape[:2], math.inf, device=tokens.device).masked_fill_(~present, -math.inf)
    for _ in range(count - 1):
        away = (tokens - row(tokens, chosen[-1])[:, None]).square().sum(-1)
        nearest = torch.minimum(nearest, away).scatter_(1, chosen[-1], -math.inf)
        chosen.append(nearest.argmax(1, keepdim=True))
    return torch.cat(chosen, dim=1)


def residuals(tokens: torch.Tensor, basis: torch.Tensor, ridge: float) -> torch.Tensor:
    """[F, N] fp32 length of the residual of each token [F, N, C] after ridge regression on the tokens `basis` [F, k].

    The k equations are solved by elimination. A basis token that depends on those before it, within rounding error, is
    left out. A residual within rounding error counts as 0 (docs/numerics.md): the basis explains that token completely.

    That error is the token's own. With unit vectors b_j in place of the basis tokens, the products that make the
    equations of a token x have errors of about rounding(C) (|x| + sum |w_j|), for its weights w_j. Solving moves
    the residual by at most that over the root of the equations' least eigenvalue, for which the least pivot stands: the
    share of its own square that a basis token has left when it is eliminated. Norms do not matter, however unequal.
    """
    with exact(tokens):
        again = (basis[:, :, None] == basis[:, None]).tril(-1).any(-1, keepdim=True)  # in cells smaller than the basis
        rows = tokens.gather(1, basis[:, :, None].expand(-1, -1, tokens.shape[-1])).masked_fill(again, 0)
        gram, eye = torch.bmm(rows, rows.transpose(1, 2)), torch.eye(basis.shape[1], device=tokens.device)
        squares, bound = gram.diagonal(dim1=1, dim2=2), rounding(tokens.shape[-1])
        system = torch.cat([gram + ridge * eye, torch.bmm(rows, tokens.transpose(1, 2))], dim=2)
        smallest = torch.ones_like(squares[:, 0])
        for step in range(basis.shape[1]):
            pivot, square = system[:, step, step], squares[:, step]
            counts = pivot > bound * square
            smallest = torch.where(counts, torch.minimum(smallest, pivot / square), smallest)
            line = torch.where(counts[:, None], system[:, step] / pivot[:, None], 0)[:, None]
            others = system - system[:, :, step, None] * line
            system = torch.where(eye[step, :, None] > 0, line, others)
        weights = system[:, :, basis.shape[1] :]
        left = (tokens - torch.bmm(weights.transpose(1, 2), rows)).norm(dim=-1)
        terms = tokens.norm(dim=-1) + torch.einsum("fkn,fk->fn", weights.abs(), squares.sqrt())
        return left.masked_fill_(left <= bound * terms / smallest.sqrt()[:, None], 0)
