"""PVC's own modules: the embedding of a frame's time, norms shifted and scaled by it, and causal attention over time.

    x <- x + g * Attention over time(LN(x) * (1 + gamma(e)) + beta(e))            arXiv 2412.09613, section 3

e is the embedding of the frame's relative time; g, gamma and beta are initially 0, so that x is unchanged.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from ppe_npu import backends
from ppe_npu.engine.rounds import as_tensor
from ppe_npu.errors import InputError
from ppe_npu.models.pvc.config import SINUSOID


@dataclass(frozen=True)
class Frames:
    """Which rows of a batch of pictures [rows, P, D] follow each other in time. A row is a picture, with P patches.

    Args:
        rows: [V, T] the rows of every video (or of all showings of an image's tile), in order; 0 beyond its end.
        steps: how many frames each video has. count: how many rows there are.
    """

    rows: np.ndarray
    steps: tuple[int, ...]
    count: int

    @classmethod
    def of(cls, time_steps: Sequence[tuple[int, int]]) -> "Frames":
        """From (steps, tiles) of every image and video, in order: its rows are the tiles of the first step, then of the
        second, ... A tile attends to itself at earlier steps, never to another tile or picture."""
        own, first = [], 0
        for steps, tiles in time_steps:
            if steps < 1 or tiles < 1:
                raise InputError(f"time_steps {(steps, tiles)}: give (steps, tiles), each at least 1")
            own += [first + tile + tiles * np.arange(steps) for tile in range(tiles)]
            first += steps * tiles
        rows = np.zeros((len(own), max(map(len, own), default=0)), np.int64)
        for video, line in zip(rows, own):
            video[: len(line)] = line
        return cls(rows, tuple(map(len, own)), first)

    def times(self, like: torch.Tensor) -> torch.Tensor:
        """[rows] the relative time of each row, 0 for the first frame and 1 for the last; 0 for a frame alone."""
        out = np.zeros(self.count, np.float32)
        for line, steps in zip(self.rows, self.steps):
            out[line[:steps]] = np.arange(steps) / max(steps - 1, 1)
        return as_tensor(out).to(like.device)

    @property
    def places(self) -> np.ndarray:
        """[rows] the index of each row in the flattened [V, T]."""
        back = np.zeros(self.count, np.int64)
        for video, (line, steps) in enumerate(zip(self.rows, self.steps)):
            back[line[:steps]] = video * self.rows.shape[1] + np.arange(steps)
        return back


@dataclass(frozen=True)
class Timing:
    """The tensors that the modules need from Frames, on the device, made once per pass.

    Args:
        time: [rows, time_width] the embedding of each row's time.
        rows: [V * T] the row at each place of the padded videos. back: [rows] the place of each row in them.
        length: T.
    """

    time: torch.Tensor
    rows: torch.Tensor
    back: torch.Tensor
    length: int

    @classmethod
    def of(cls, frames: Frames, embedding: "TimeEmbedding", like: torch.Tensor) -> "Timing":
        rows, back = (as_tensor(part).to(like.device) for part in (frames.rows.reshape(-1), frames.places))
        return cls(embedding(frames.times(like)), rows, back, frames.rows.shape[1])


class TimeEmbedding(nn.Module):
    """Relative time in [0, 1] -> [*, time_width]: 256 sines and cosines, then two linear layers."""

    def __init__(self, width: int):
        super().__init__()
        self.first, self.act, self.second = nn.Linear(SINUSOID, width), nn.SiLU(), nn.Linear(width, width)

    def forward(self, times: torch.Tensor) -> torch.Tensor:
        """times: [N] fp32. Wavelengths grow from 2 pi to 20,000 pi steps; the whole video is 1000 steps long."""
        half = SINUSOID // 2
        frequencies = torch.exp(-math.log(10_000) * torch.arange(half, device=times.device) / half)
        angles = 1000 * times[:, None] * frequencies
        waves = torch.cat([angles.cos(), angles.sin()], dim=-1)
        return self.second(self.act(self.first(waves.to(self.first.weight.dtype))))


class TimeNorm(nn.Module):
    """norm(x) * (1 + gamma(e)) + beta(e), where gamma and beta are linear in e and initially 0."""

    def __init__(self, width: int, time_width: int):
        super().__init__()
        self.modulation = nn.Linear(time_width, 2 * width)
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)

    def forward(self, normed: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        """normed: [N, ..., D]. time: [N, time_width]."""
        gamma, beta = self.modulation(time).chunk(2, dim=-1)
        shape = (len(normed), *[1] * (normed.dim() - 2), -1)
        return normed * (1 + gamma.view(shape)) + beta.view(shape)


class TemporalAttention(nn.Module):
    """Adds to each patch what it attends to in the same patch of its own and of earlier frames."""

    def __init__(self, width: int, heads: int, time_width: int, eps: float = 1e-6):
        super().__init__()
        if width % heads:
            raise InputError(f"pvc's heads={heads} do not divide the vision tower's width {width}: give a divisor")
        self.heads = heads
        self.norm, self.time_norm = nn.LayerNorm(width, eps=eps), TimeNorm(width, time_width)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.gate = nn.Parameter(torch.zeros(width))

    def forward(self, x: torch.Tensor, timing: Timing) -> torch.Tensor:
        """x: [rows, P, D], with P patches in each row.

        Every (video, patch) is a sequence. Shorter ones are padded at the end, which the causal mask hides from real
        rows, so that one dense kernel serves all lengths.
        """
        patches, width = x.shape[1:]
        qkv = self.qkv(self.time_norm(self.norm(x), timing.time)).index_select(0, timing.rows)
        # [V * T, P, 3 * D] -> 3 of [V * P, H, T, D / H]
        parts = qkv.view(-1, timing.length, patches, 3, self.heads, width // self.heads).permute(3, 0, 2, 4, 1, 5)
        query, key, value = parts.flatten(1, 2).contiguous()
        out = backends.attention(query, key, value, causal=True)
        out = out.reshape(-1, patches, self.heads, timing.length, width // self.heads).permute(0, 3, 1, 2, 4)
        out = out.reshape(-1, patches, width).index_select(0, timing.back)
        return x + self.gate * self.proj(out)
