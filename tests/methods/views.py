"""Views for any method, with all the data that it declares to need."""

import itertools

import torch

from ppe_npu.methods.base import Method
from ppe_npu.methods.view import View

FRAMES = [(1, 4, 6), (1, 3, 5), (1, 5, 4), (1, 2, 9)]  # (frames, height, width) of each cell
VIDEOS = [(2, 3, 4), (3, 2, 3), (1, 4, 5), (4, 2, 2)]
_CHANNELS, _HEADS, _KEY_HEADS, _WIDTH, _TEXT = 16, 4, 2, 8, 7
_FIELDS = {
    "layer_plain": ("layer_plain_queries", "layer_plain_keys"),
    "layer_text": ("text_queries", "text_keys", "text_valid", "text_after"),
    "text": ("text", "text_valid", "text_after"),
}


def grids_of(method: Method) -> list[tuple[int, int, int]]:
    return VIDEOS if method.scope == "span" else FRAMES


def parts_of(method: Method, seed: int = 0, whole: bool = False) -> dict[str, torch.Tensor]:
    """The parts of a view that a method looks at, for four cells of unequal sizes; padding holds random values.

    whole: every token's size is 1, as before the first merge.
    """
    generator = torch.Generator().manual_seed(seed)
    grids = grids_of(method)
    cells, most = len(grids), max(t * h * w for t, h, w in grids)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(cells, *shape, generator=generator)

    places = torch.full((cells, most, 3), 99)
    for cell, grid in enumerate(grids):
        own = torch.tensor(list(itertools.product(*map(range, grid))))
        places[cell, : len(own)] = own
    blocks = len(method.blocks(32))
    shape = (blocks, most) if blocks > 1 else (most,)
    # Neighbouring tokens are similar, as in a picture.
    tokens = torch.nn.functional.avg_pool1d(random(_CHANNELS, most + 2), 3, 1).transpose(1, 2) + 0.5
    every = {
        "tokens": tokens,
        "places": places,
        "sizes": torch.ones(cells, most, dtype=torch.long) if whole else 1 + random(most).abs().long(),
        "text": random(_TEXT, _CHANNELS),
        "text_valid": torch.arange(_TEXT) < torch.tensor([[7], [5], [7], [6]]),
        "text_after": torch.arange(_TEXT) >= torch.tensor([[3], [2], [0], [4]]),
        "tower_keys": random(most, _WIDTH) + 0.3,
        "tower_saliency": random(*shape).abs(),
        "layer_queries": random(most, _HEADS, _WIDTH),
        "layer_keys": random(most, _KEY_HEADS, _WIDTH),
        "layer_plain_queries": random(most, _HEADS, _WIDTH),
        "layer_plain_keys": random(most, _KEY_HEADS, _WIDTH),
        "text_queries": random(_TEXT, _HEADS, _WIDTH),
        "text_keys": random(_TEXT, _KEY_HEADS, _WIDTH),
        "layer_row": random(most).abs(),
        "text_plain_queries": random(_TEXT, _HEADS, _WIDTH),
        "text_plain_keys": random(_TEXT, _KEY_HEADS, _WIDTH),
    }
    both = {"text_plain_queries", "text_plain_keys"} if {"layer_plain", "layer_text"} <= method.needs else set()
    names = {name for need in method.needs for name in _FIELDS.get(need, (need,))} | {"tokens", "places"}
    return {name: value for name, value in every.items() if name in names | both}


def sizes_of(method: Method) -> list[int]:
    return [t * h * w for t, h, w in grids_of(method)]


def view_of(method: Method, parts: dict[str, torch.Tensor], num_kept=None) -> View:
    sizes = torch.tensor(sizes_of(method))
    valid = torch.arange(int(sizes.max())) < sizes[:, None]
    return View.of(**parts, valid=valid, num_kept=num_kept)


def alone(method: Method, parts: dict[str, torch.Tensor], cell: int, num_kept: int) -> View:
    """One cell of view_of(), without any padding."""
    size, own = sizes_of(method)[cell], {name: value[cell : cell + 1] for name, value in parts.items()}
    texts = int(own["text_valid"].sum()) if "text_valid" in own else 0
    for name, value in own.items():
        length = texts if name.startswith("text") else size
        own[name] = value[..., :length] if name == "tower_saliency" else value[:, :length]
    return View.of(**own, num_kept=num_kept)


def _copies(own: torch.Tensor, others: torch.Tensor, seed: int) -> torch.Tensor:
    """Copies of the rows of `own` in place of `others`, drawn at random."""
    index = torch.randint(len(own), (len(others),), generator=torch.Generator().manual_seed(seed))
    return own[index]


def _filled(value: float):
    """Floating point numbers become `value`. Whole numbers, of which there are no such values, become very large."""
    return lambda own, others, first: torch.full_like(others, value if others.is_floating_point() else 2**30)


# What padding may hold. All rows are [n, ...] of one part: a cell's own, those of its padding, and the batch's first.
PADDING = {
    "the first token of the batch": lambda own, others, first: first.expand_as(others),  # as in the engine
    "the cell's first token": lambda own, others, first: own[:1].expand_as(others),
    "the cell's last token": lambda own, others, first: own[-1:].expand_as(others),
    "tokens of the cell": lambda own, others, first: _copies(own, others, seed=0),
    "zeros": lambda own, others, first: torch.zeros_like(others),
    "large": lambda own, others, first: 100 * others + 100,
    "largest": lambda own, others, first: torch.full_like(
        others, torch.finfo(others.dtype).max if others.is_floating_point() else 2**62
    ),
    "nan": _filled(torch.nan),
    "infinity": _filled(torch.inf),
    "minus infinity": _filled(-torch.inf),
}
_OF_PADDING = ("text_valid", "text_after")  # which say what is padding, or where it is


def with_padding(method: Method, parts: dict[str, torch.Tensor], kind: str) -> dict[str, torch.Tensor]:
    """The same parts with other values in the padding of cells and of text."""
    texts = parts["text_valid"].sum(1).tolist() if "text_valid" in parts else []
    out = {name: value.clone() for name, value in parts.items()}
    for name in out.keys() - set(_OF_PADDING):
        rows = out[name].transpose(1, -1) if name == "tower_saliency" else out[name]
        lengths = texts if name.startswith("text") else sizes_of(method)
        for own, length in zip(rows, lengths):
            own[length:] = PADDING[kind](own[:length], own[length:], rows[0, :1])
    return out


def with_holes(method: Method, parts: dict[str, torch.Tensor], value: float, cell: int) -> dict[str, torch.Tensor]:
    """The same parts with `value` in place of every third number of one cell."""
    out = {name: part.clone() for name, part in parts.items()}
    for part in out.values():
        if part.is_floating_point():
            part[cell].masked_fill_(torch.arange(part[cell].numel()).view(part[cell].shape) % 3 == 0, value)
    return out
