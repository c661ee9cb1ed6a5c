"""HoliTom: keeps what is constant in a window of frames only once (Shao et al., arXiv 2505.21334, section 3)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from ppe_npu.errors import InputError, shown
from ppe_npu.methods.base import Method, register, share
from ppe_npu.methods.choosing import dropped, unit
from ppe_npu.methods.grids import Grid, at_heads, by_head
from ppe_npu.methods.grouping import Grouping
from ppe_npu.methods.peaks import density_peaks
from ppe_npu.methods.view import View
from ppe_npu.settings import setting


def _flag(value: bool | int | str) -> bool:
    if str(value) not in ("0", "1", "False", "True"):
        raise InputError(f"NO_BETA={shown(value)}: give true or false, or, as in the published code, 1 or 0")
    return str(value) in ("1", "True")


@register("holitom")
@dataclass(frozen=True)
class HoliTom(Method):
    """A place is static in a window of frames [s, e] if cos(x_{t,p}, x_{t+1,p}) > tau for all s <= t < e. The video is
    cut into the windows that save most, by the sum of (e - s) * static places (by dynamic programming). If this saves R
    of n tokens, the fraction r = min(1, ratio n / (n - R)) of the rest is kept. In a window the static places, averaged
    over its frames, are clustered by density peaks into round(places * r). Each frame keeps ceil(m r) of its other m
    places: the fraction 1 - D by attention received, the rest as clusters of those left. A cluster becomes beta * its
    centre + (1 - beta) * the mean of its other members.

    How many tokens stay depends on the features, and is slightly more than asked for, since each number is rounded
    separately; if all are rounded to 0, the largest window has one cluster. With ratio 1 every token stays. The
    published code averages windows even then, adds noise to densities (here ties go to the lower index), fails for
    D > 0 (because a mask has an extra axis), lists a window's static places before its frames, and has two defaults for
    one setting: it prints NO_BETA=1 and uses 0. Here tokens are in raster order, with static ones at the first frame of
    their window.

    Args:
        ratio: fraction of the tokens to keep; retain_ratio: its published name.
        tau: smallest cosine of a static place from frame to frame.
        beta: weight of a cluster's centre; NO_BETA: a cluster becomes its plain mean.
        D: fraction of the other places' budget for clusters. K: number of nearest neighbours that define a density.
        max_window: the most frames in a window.
        released: tokens in the published order; and windows are averaged whatever the ratio.
        dropped: what becomes of tokens in no cluster, see choosing.dropped.
    """

    ratio: float = share(0.1)
    retain_ratio: float | None = setting(None, above=0, most=1, remedy="give the kept share, in (0, 1], or null")
    tau: float = setting(0.8, least=-1, most=1)
    beta: float = setting(0.6, least=0, most=1)
    D: float = setting(0.0, least=0, most=1)
    K: int = setting(7, least=1)
    NO_BETA: bool | int | str = setting(False, convert=_flag)
    max_window: int = setting(1024, least=1)
    released: bool = False
    dropped: str = dropped()

    needs = frozenset({"tokens", "places", "tower_saliency"})
    scope, counts = "span", "late"

    def __post_init__(self):
        super().__post_init__()
        self.either("ratio", "retain_ratio")

    @property
    def _share(self) -> float:
        return self.ratio if self.retain_ratio is None else self.retain_ratio

    def kept(self, tokens: int) -> int:
        return tokens

    def kept_cells(self, cells) -> list[int]:
        """An upper bound: rounding may add half a token for each window, and one for each frame."""
        return [min(sum(cells), int(sum(cells) * self._share + 1.5 * len(cells)))]

    def group(self, view: View) -> Grouping:
        view.require("holitom", "tokens", "places", "tower_saliency")
        grid = Grid.of(view)
        tokens, there = grid.lay(view.tokens), grid.there
        start, static, saved = self._windows(unit(tokens), there)
        still = static.gather(1, start[:, :, None].expand_as(static)) & there  # [F, T, U]
        moving = there & ~still
        shares = _read(static.sum(-1), moving.sum(-1), there.sum((1, 2)), saved)
        fixed, top, clustered = self._numbers(tokens.device, *shares)
        received = grid.lay(view.tower_saliency).masked_fill(~moving, -torch.inf)
        order = received.sort(dim=-1, descending=True, stable=True).indices
        place = torch.arange(grid.places, device=order.device).expand_as(order)
        dominant = moving & (torch.empty_like(order).scatter_(2, order, place) < top[:, :, None])
        of_window = self._clusters(_window_means(tokens, start), static, fixed)  # [F, T, U], by the first frame
        of_frame = self._clusters(tokens, moving & ~dominant, clustered)
        own = (place.new_tensor(range(grid.frames)) * grid.places)[:, None]
        centre = of_window.gather(1, start[:, :, None].expand_as(static))
        heads = torch.where(still & (centre >= 0), start[:, :, None] * grid.places + centre, -1)
        heads = torch.where(moving & (of_frame >= 0), own + of_frame, heads)
        heads = torch.where(dominant, own + place, heads)
        kind = torch.where(still, 0, 1 + 2 * torch.arange(grid.frames, device=own.device)[:, None])
        kind = start[:, :, None] * (2 * grid.frames + 2) + torch.where(moving & ~dominant, kind + 1, kind)
        made = grid.grouping(heads, self._weights(heads, there), kind.flatten(1) if self.released else None)
        return made.with_dropped(view, self.dropped)

    def _windows(self, tokens: torch.Tensor, there: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """[F, T] int64, the first frame of each frame's window; [F, T, U] bool, which places are static in each window,
        indexed by the window's first frame; [F] fp32, how many tokens this saves."""
        frames, longest = tokens.shape[1], 1 if self._share == 1 and not self.released else self.max_window
        alike = ((tokens[:, 1:] * tokens[:, :-1]).sum(-1) > self.tau) & there[:, 1:] & there[:, :-1]
        best, first = [torch.zeros(len(tokens), device=tokens.device)], []
        through = torch.zeros(len(tokens), 0, tokens.shape[2], dtype=torch.bool, device=tokens.device)
        for end in range(frames):
            # through: the static places of the windows that begin at 0, 1, ..., end - 1.
            if end:
                through = torch.cat([through, torch.ones_like(through[:, :1])], 1) if end > 1 else alike[:, :1]
                through = through & alike[:, end - 1 : end]
            length = torch.arange(end, -1, -1, device=tokens.device)
            gain = torch.nn.functional.pad(through.sum(-1), (0, 1)) * length + torch.stack(best, dim=1)
            gain = gain.masked_fill(length >= longest, -1).flip(1)  # the shortest window first
            value, back = gain.max(1).values, gain.argmax(1)
            best.append(value)
            first.append(end - back)
        starts, at = [], first[-1]
        for end in reversed(range(frames)):
            at = torch.where(at > end, first[end], at)
            starts.append(at)
        start = torch.stack(starts[::-1], dim=1)
        breaks = (
            torch.nn.functional.pad(~alike, (0, 0, 1, 0))
            & (start != torch.arange(frames, device=at.device))[:, :, None]
        )
        index = start[:, :, None].expand_as(breaks)
        broken = torch.zeros_like(breaks, dtype=torch.long).scatter_add_(1, index, breaks.long())
        length = torch.zeros_like(start).scatter_add_(1, start, torch.ones_like(start))
        return start, (broken == 0) & (length > 1)[:, :, None] & there, best[-1]

    def _numbers(self, device, static, moving, total, saved) -> tuple[torch.Tensor, ...]:
        """[F, T] int64 each: clusters of static places (by first frame), tokens by attention, clusters of the rest."""
        ratio = np.minimum(self._share / ((total - saved) / total), 1.0)[:, None]
        kept = np.ceil(moving * ratio)
        top = np.round(kept * (1 - self.D))
        fixed = np.round(static * ratio)
        bare = (fixed + kept).sum(1) == 0  # every place is static, and half of them in a window round to no cluster
        fixed[bare, static[bare].argmax(1)] = 1
        parts = np.stack([fixed, top, kept - top]).astype(np.int64)
        return tuple(torch.from_numpy(parts).to(device))

    def _clusters(self, tokens: torch.Tensor, valid: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
        """[F, T, U] int64, the place of the centre of each token's cluster in its frame; -1 for none."""
        rows = (wanted.flatten() > 0).nonzero()[:, 0]
        out = torch.full((valid[..., 0].numel(), valid.shape[-1]), -1, device=valid.device)
        if len(rows):
            valid, wanted = valid.flatten(0, 1).index_select(0, rows), wanted.flatten().index_select(0, rows)
            most = int(wanted.max())
            given = tokens.flatten(0, 1).index_select(0, rows)
            centers, labels = density_peaks(given, valid, wanted, most, wanted.clamp_max(self.K), min(most, self.K))
            out[rows] = torch.where(labels < 0, -1, centers.gather(1, labels.clamp_min(0)))
        return out.view(*tokens.shape[:3])

    def _weights(self, heads: torch.Tensor, there: torch.Tensor) -> torch.Tensor:
        """[F, T, U] fp32 weights. In a static cluster, the frames of the centre together get the centre's weight."""
        if self.NO_BETA:
            return there.float()
        places = torch.arange(heads.shape[-1], device=heads.device)
        central = heads % heads.shape[-1] == places
        ones = torch.ones_like(heads, dtype=torch.float32)
        centre = at_heads(by_head(ones * central, heads), heads)
        others = at_heads(by_head(ones * ~central, heads), heads)
        shared = torch.where(central, self.beta / centre, (1 - self.beta) / others)
        return torch.where(others == 0, 1.0, shared)


def _window_means(tokens: torch.Tensor, start: torch.Tensor) -> torch.Tensor:
    """[F, T, U, C] mean of each place over a window, indexed by the window's first frame."""
    index = start[:, :, None, None].expand_as(tokens)
    length = torch.zeros_like(start).scatter_add_(1, start, torch.ones_like(start)).clamp_min(1)
    return torch.zeros_like(tokens).scatter_add_(1, index, tokens) / length[:, :, None, None]


def _read(static: torch.Tensor, moving: torch.Tensor, total: torch.Tensor, saved: torch.Tensor) -> list[np.ndarray]:
    """These numbers as NumPy arrays; the host waits for them."""
    parts = torch.cat([static, moving, total[:, None], saved.long()[:, None]], dim=1).cpu().numpy()
    frames = static.shape[1]
    return [parts[:, :frames], parts[:, frames : 2 * frames], parts[:, -2], parts[:, -1]]
