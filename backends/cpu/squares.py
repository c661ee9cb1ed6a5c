"""Squared distances of all pairs of tokens of a few frames, in buffers that are reused for the next few frames."""

import math

import torch
from torch import Tensor
from torch.nn import functional

from ppe_npu.backends.reference.dpc_knn import (
    checksums,
    first_equal,
    flat_square,
    largest_error,
    probable_error,
    share_rows,
)

LEAST_CUT = 160  # smallest frame, in tokens, that is faster to multiply in strips than whole
ROWS = 64  # a strip's rows are a multiple of this; with other numbers, products are slower for the same work
SAMPLE = 8  # tokens per frame from which its offset is judged
# A token that equals token i within a bound of at most WIDEST has at most 1.35 times its squared norm: if r^2 is the
# ratio of squared norms, (r - 1)^2 <= 2 WIDEST (1 + r^2), where 2 allows for the distance's own rounding. Their
# sum is then at most NORMS times the squared norm of i.
WIDEST, NORMS = 0.005, 2.35


class Squares:
    """Computes d_ij^2 = |x_i - x_j|^2 / C for up to `frames` frames at a time.

    Args:
        tokens: [F, N, C] floating point; distances are taken in fp32 (fp64 for fp64 tokens).
        frames: the largest number of frames at a time.
        sizes: the number of tokens of each frame; they precede the padding.
    """

    def __init__(self, tokens: Tensor, frames: int, sizes: list[int]):
        self.tokens, self.frames = tokens, frames
        self.offset = _far_from_origin(tokens, sizes)
        self.dtype = torch.float64 if tokens.dtype == torch.float64 else torch.float32
        count = tokens.shape[1]
        self._squared = tokens.new_empty(frames, count, count, dtype=self.dtype)
        self._norms = tokens.new_empty(frames, count, dtype=self.dtype)
        strip = max((size * _step(size) for size in set(sizes)), default=0)
        self._sums = tokens.new_empty(frames * strip, dtype=self.dtype)
        self._centred = tokens.new_empty(tokens.shape[1:], dtype=self.dtype)

    def of(self, part: slice, sizes: list[int]) -> Tensor:
        """[part, N, N]: symmetric, infinite on the diagonal and where a frame has no token.

        Args:
            sizes: the number of tokens of each of these frames.
        """
        squared, norms = self._squared[: len(sizes)], self._norms[: len(sizes)]
        whole = all(size == squared.shape[1] for size in sizes)
        if not whole:
            squared.fill_(torch.inf)
            norms.zero_()
        for number, size in enumerate(sizes):
            _multiply(self._frame(part.start + number, size), squared[number, :size, :size])
            if not whole:
                self._finish(squared[number : number + 1, :size, :size], norms[number : number + 1, :size])
        if whole:
            self._finish(squared, norms)
        squared.diagonal(dim1=1, dim2=2).fill_(torch.inf)
        return squared

    def mended(self, part: slice, sizes: list[int], nearest: Tensor) -> bool:
        """Makes the distances of equal tokens equal, by the reference's rules; returns whether there were any.

        Args:
            nearest: [part, N] d^2 of each token to its nearest.
        """
        channels, norms = self.tokens.shape[-1], self._norms[: len(sizes)]
        widest, narrow = (bound(channels, self.dtype) for bound in (largest_error, probable_error))
        # "Greater", rather than "not less", is false for NaN.
        apart = (nearest > norms * (widest * NORMS)).all(1).tolist() if widest <= WIDEST else [False] * len(sizes)
        flat = (norms.amax(1) * channels <= flat_square(self.tokens[part])).tolist()
        found = any(flat)
        for number, size in enumerate(sizes):
            if flat[number]:
                self._squared[number, :size, :size].fill_(0).diagonal().fill_(torch.inf)
            if flat[number] or apart[number]:
                continue
            own, sums = norms[number, :size], checksums(self._frame(part.start + number, size))
            if widest <= WIDEST and bool((nearest[number, :size] > own * (narrow * NORMS)).all()) and not _twice(sums):
                continue
            self._mend(self._squared[number, :size, :size], own, sums)
            found = True
        return found

    def _frame(self, number: int, size: int) -> Tensor:
        """[n, C] tokens of one frame, centred on their mean if that is large, because it would cost products digits."""
        tokens = self.tokens[number, :size]
        if not self.offset[number]:
            return tokens.to(self.dtype).contiguous()
        out = self._centred[:size].copy_(tokens)
        return out.sub_(out.mean(0))

    def _finish(self, squared: Tensor, norms: Tensor) -> None:
        """Turns _multiply's products [f, n, n] into squared distances, in place. Writes norms [f, n], also over C."""
        scale = 1 / self.tokens.shape[-1]
        torch.mul(squared.diagonal(dim1=1, dim2=2), scale, out=norms)
        for rows in _strips(squared.shape[1]):
            # |x_i|^2 + |x_j|^2 - 2 x_i x_j, on and above the diagonal.
            above = squared[:, rows, rows.start :]
            both = self._sums[: above.numel()].view(above.shape)
            torch.add(norms[:, rows, None], norms[:, None, rows.start :], out=both).add_(above, alpha=-2 * scale)
            # Products may be asymmetric in the last bit, but ties must not depend on which of the two sides is read.
            square = both[:, :, : both.shape[1]]
            square.copy_(torch.minimum(square, square.mT))
            above.copy_(both)
            squared[:, rows.stop :, rows] = both[:, :, both.shape[1] :].mT

    def _mend(self, squared: Tensor, norms: Tensor, sums: Tensor) -> None:
        squared.diagonal().fill_(0)
        bound = probable_error(self.tokens.shape[-1], self.dtype)
        for rows in _strips(len(norms)):
            both = norms[rows, None] + norms
            squared[rows].mul_(squared[rows] >= both.mul_(bound))
        bound = largest_error(self.tokens.shape[-1], self.dtype)
        share_rows(squared[None], first_equal(squared[None], norms[None], sums[None], bound))
        squared.diagonal().fill_(torch.inf)


def _multiply(x: Tensor, out: Tensor) -> None:
    """Writes the products of the tokens x [n, C] with each other, on and above the diagonal of out [n, n]."""
    for rows in _strips(len(x)):
        torch.mm(x[rows], x[rows.start :].T, out=out[rows, rows.start :])


def _far_from_origin(tokens: Tensor, sizes: list[int]) -> list[bool]:
    """Whether a sample of each frame's tokens points in one direction: the squared norm of their mean unit vector is at
    least 1/2. Unit vectors are used because one massive token could outweigh all others."""
    sampled = [[size * number // SAMPLE for number in range(SAMPLE)] for size in sizes]
    places = torch.tensor(sampled, dtype=torch.long, device=tokens.device)
    frames = torch.arange(len(sizes), device=tokens.device)[:, None]
    some = tokens[frames, places].to(torch.promote_types(tokens.dtype, torch.float32)) if sizes else tokens[:, :0]
    return (~(2 * functional.normalize(some, dim=-1).mean(1).square().sum(-1) < 1)).tolist()


def _step(count: int) -> int:
    """The number of rows of a strip."""
    return ROWS * max(1, round(4 * math.sqrt(count) / ROWS)) if count >= LEAST_CUT else count


def _strips(count: int) -> list[slice]:
    """Slices of rows. With more slices, less is computed below the diagonal, but each product is slower."""
    step = _step(count)
    return [slice(start, min(start + step, count)) for start in range(0, count, step or 1)]


def _twice(sums: Tensor) -> bool:
    return bool((sums.sort().values.diff() == 0).any())
