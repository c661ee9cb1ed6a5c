"""Defines the cases, and writes positions.json: python -m ppe_npu.serving.conformance.made"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from ppe_npu.engine.spans import IMAGE, VIDEO
from ppe_npu.files import write_text
from ppe_npu.serving.conformance import FAMILIES, FILE, ConformanceCase, Item, ours, to_plain

# Which of an item's n tokens stay. Together these expose every wrong rule for the position at which text continues:
# after the largest kept position, by the number of kept tokens, or by the extent of the kept tokens.
KEPT = {
    "all": lambda n: None,
    "every other": lambda n: tuple(range(0, n, 2)),
    "the first": lambda n: (0,),
    "all but the last": lambda n: tuple(range(n - 1)) or (0,),
    "the last third": lambda n: tuple(range(n - max(n // 3, 1), n)),
}
IMAGES = {"square": (1, 8, 8), "tall": (1, 16, 8), "wide": (1, 4, 20), "one token": (1, 2, 2)}
VIDEOS = {"short": (2, 8, 6), "long": (9, 4, 4), "wide": (3, 4, 12), "one frame": (1, 6, 6)}
SECONDS = (1.0, 0.5, 2.0, 1.75, 0.4)


def cases() -> list[ConformanceCase]:
    """More than fifty cases, from three families."""
    return [case for family in FAMILIES for case in (*_images(family), *_videos(family), *_mixed(family))]


def _images(family: str) -> Iterator[ConformanceCase]:
    for shape, grid in IMAGES.items():
        for said, kept in KEPT.items() if shape == "tall" else [("all", KEPT["all"])]:
            item = Item(IMAGE, grid, kept=kept(grid[1] * grid[2] // 4))
            yield ConformanceCase(f"{family}: {shape} image, {said}", family, [2, item, 3])


def _videos(family: str) -> Iterator[ConformanceCase]:
    stamps = 4 if FAMILIES[family].frames_apart else 0
    seconds = SECONDS if family == "qwen2_5_vl" else (1.0,)
    for number, (shape, grid) in enumerate(VIDEOS.items()):
        for per_frame in seconds if shape == "long" else seconds[number : number + 1] or (1.0,):
            item = Item(VIDEO, grid, per_frame, stamps=stamps)
            yield ConformanceCase(f"{family}: {shape} video at {per_frame:g} s, all", family, [3, item, 2])
    for said, kept in list(KEPT.items())[1:]:
        grid = VIDEOS["short"] if stamps else VIDEOS["long"]
        tokens = grid[0] * grid[1] * grid[2] // 4
        stays = kept(tokens)
        if stamps:  # each frame keeps some tokens, because engines do not handle a timestamp without a frame
            frame = tokens // grid[0]
            stays = tuple(f * frame + n for f in range(grid[0]) for n in kept(frame))
        for per_frame in seconds[:2]:
            item = Item(VIDEO, grid, per_frame, stays, stamps)
            yield ConformanceCase(f"{family}: video at {per_frame:g} s, {said}", family, [1, item, 4])


def _mixed(family: str) -> Iterator[ConformanceCase]:
    stamps = 3 if FAMILIES[family].frames_apart else 0
    two = [Item(IMAGE, (1, 8, 6), kept=(0, 5, 7)), Item(IMAGE, (1, 4, 14))]
    yield ConformanceCase(f"{family}: two images, one of them pruned", family, [1, two[0], 5, two[1], 2])
    film = Item(VIDEO, (3, 4, 4), 2.0 if family == "qwen2_5_vl" else 1.0, (0, 3, 5, 6, 9, 10), stamps)
    yield ConformanceCase(f"{family}: image and pruned video", family, [4, two[1], 2, film, 1])
    yield ConformanceCase(f"{family}: video before an image", family, [2, film, 3, two[0], 2])
    yield ConformanceCase(f"{family}: text alone", family, [7])


def main() -> None:
    lines = [json.dumps(to_plain(case, ours(case))) for case in cases()]
    print(write_text(Path(__file__).with_name(FILE), "[\n" + ",\n".join(lines) + "\n]\n"), len(lines), "cases")


if __name__ == "__main__":
    main()
