"""The work of a pass of the vision tower, and of the decoder: floating-point operations by formula, and time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from ppe_npu.inspect.report import Stopwatch


@dataclass(frozen=True)
class Widths:
    """The sizes of a block or layer, from which its operations are counted.

    Args:
        asked: weights of the projections to queries, keys and values, in a tower a third each. rest: weights of its
            other linear layers.
        channels: number of channels of all heads together. out: weights of the projection after attention, which are
            part of `rest`.
    """

    asked: int
    rest: int
    channels: int
    out: int = 0

    @classmethod
    def of(cls, block: torch.nn.Module, asked: Sequence[torch.nn.Module], out: torch.nn.Linear) -> Widths:
        first = sum(map(_weights, asked))
        return cls(first, _weights(block) - first, out.in_features, _weights(out))

    def flops(self, rows: int, fed: int, pairs: int) -> int:
        """Operations for `rows` rows with queries, keys and values, `fed` rows that go through the rest, and `pairs`
        pairs of a query and a key. A multiply-add counts as two."""
        return 2 * (rows * self.asked + fed * self.rest) + 4 * pairs * self.channels


def _weights(module: torch.nn.Module) -> int:
    linear = (part for part in module.modules() if isinstance(part, torch.nn.Linear))
    return sum(part.in_features * part.out_features for part in linear)


@dataclass(frozen=True)
class BlockWork:
    """The work of a block, `whole` in the unmodified tower and `ran` in this pass: (rows with queries, keys and values,
    rows fed to the rest, pairs that attend). lost: how many more rows came out of attention than were fed to the rest.
    spared: for how many rows only keys and values were computed."""

    whole: tuple[int, int, int]
    ran: tuple[int, int, int]
    lost: int = 0
    spared: int = 0

    def flops(self, widths: Widths) -> int:
        """Operations of this pass."""
        return widths.flops(*self.ran) + 2 * (self.lost * widths.out - self.spared * widths.asked // 3)


@dataclass
class TowerReport:
    """A pass of the vision tower in which a method worked.

    Args:
        widths: the sizes of a block. decoders: those of a decoder layer; None if one has no softmax attention.
        blocks: the work of each block that has run, by its number.
        watch: the time that the tower took.
        decoder: operations of the prompt's pass through the decoder's layers, if they are known.
        decoding: the time of that pass, including merges between layers; None if the tower ran by itself.
    """

    widths: Widths
    decoders: Widths | None
    watch: Stopwatch
    blocks: dict[int, BlockWork] = field(default_factory=dict)
    decoder: int | None = None
    decoding: Stopwatch | None = None

    def beside(self, tokens: Sequence[Sequence[int]]) -> None:
        """Count the decoder's operations. tokens: for each layer, how many tokens each sample has."""
        if self.decoders is not None:
            own = (count for layer in tokens for count in layer)
            self.decoder = sum(self.decoders.flops(count, count, count * (count + 1) // 2) for count in own)

    @property
    def patches(self) -> list[int]:
        """How many patches went through the MLP of each block."""
        return [self.blocks[number].ran[1] for number in sorted(self.blocks)]

    @property
    def flops(self) -> int:
        return sum(block.flops(self.widths) for block in self.blocks.values())

    @property
    def dense_flops(self) -> int:
        """Operations of the unmodified tower."""
        return sum(self.widths.flops(*block.whole) for block in self.blocks.values())

    def to_dict(self) -> dict[str, Any]:
        return {
            "patches": self.patches,
            "flops": self.flops,
            "dense_flops": self.dense_flops,
            "decoder_flops": self.decoder,
            "milliseconds": self.watch.milliseconds,
            "decoder_milliseconds": None if self.decoding is None else self.decoding.milliseconds,
        }

    def __str__(self) -> str:
        whole = f"{self.flops / 1e9:.3g} GFLOP ({self.flops / self.dense_flops:.1%} of untouched)"
        parts = [_spent(whole, self.watch)]
        if self.decoder is not None:
            parts.append("decoder " + _spent(f"{self.decoder / 1e9:.3g} GFLOP", self.decoding))
        return "; ".join(parts)


def _spent(work: str, watch: Stopwatch | None) -> str:
    known = watch is not None and not math.isnan(watch.milliseconds)
    return f"{work} in {watch.milliseconds:.1f} ms" if known else work
