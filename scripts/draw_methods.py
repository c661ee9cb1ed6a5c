"""Draws every method's groups for one picture and one video: docs/methods-picture.png, docs/methods-video.png.

    python scripts/draw_methods.py [--ratio 0.25] [--output docs]

The demo's tiny model, with random weights, is given one of the demo's scenes, and a video of four scenes, each of which
has one figure less than the one before. Each panel is one method with its own defaults at this share of the tokens:
tokens of one colour became one token, a dot marks the representative, and dark tokens were dropped. Methods that run on
entry of a layer use the second of two; methods that look into the tower use its only block.
"""

import argparse
import io
import textwrap
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from ppe_npu import compress
from ppe_npu.config import CompressionConfig
from ppe_npu.demo import scenes, tiny
from ppe_npu.demo.methods import TableRow
from ppe_npu.errors import InputError
from ppe_npu.files import write_bytes
from ppe_npu.inspect.show import draw_strip
from ppe_npu.inspect.trace import Groups
from ppe_npu.methods.listing import grouping, of_pictures

SEED, FRAMES, COLUMNS, SIDE, GAP, LINE = 3, 4, 6, 144, 8, 18
DROPPED = (40, 40, 40)


def pictures() -> list[Image.Image]:
    """The scenes of the video; the first is the picture."""
    scene = scenes.make_scene(np.random.default_rng(SEED))
    return [scenes.Scene(scene.figures[number:]).render() for number in range(FRAMES)]


def config_of(name: str, ratio: float) -> CompressionConfig | None:
    """A config of this method alone, at this share and at the place that it has in the demo; None if it is invalid."""
    try:
        return TableRow(name, "keep_one", ratio, False).config
    except InputError:
        return None


def groups_of(model, processor, config: CompressionConfig, frames: Sequence[Image.Image]) -> Groups:
    """The groups of one picture, or of a video of several frames, before a question."""
    compress(model, config)
    model.compression.keep_groups = True
    # A video's patch spans two frames; as a picture's patch repeats its pixels, it is a patch of two equal frames.
    made = [processor.image_processor(images=[frame], return_tensors="pt") for frame in frames]
    pixels, grid = torch.cat([one["pixel_values"] for one in made]), made[0]["image_grid_thw"].clone()
    grid[0, 0] = len(frames)
    video = len(frames) > 1
    token = model.config.video_token_id if video else model.config.image_token_id
    question = processor.tokenizer("shape red")["input_ids"]
    ids = torch.tensor([question[:1] + [token] * int(grid.prod() // tiny.MERGE**2) + question])
    names = ("pixel_values_videos", "video_grid_thw") if video else ("pixel_values", "image_grid_thw")
    with torch.no_grad():
        model(input_ids=ids, **dict(zip(names, (pixels, grid))))
    return model.compression.trace.visuals()[0].stages[-1]


def sheet(titled: Sequence[tuple[str, Image.Image]], columns: int) -> bytes:
    """The bytes of a PNG, with few colours, of all panels with their titles."""
    width, height = titled[0][1].size
    rows = -(-len(titled) // columns)
    page = Image.new("RGB", (columns * (width + GAP) + GAP, rows * (height + LINE + GAP) + GAP), "white")
    draw, font = ImageDraw.Draw(page), ImageFont.load_default(13)
    for number, (title, panel) in enumerate(titled):
        x, y = GAP + number % columns * (width + GAP), GAP + number // columns * (height + LINE + GAP)
        draw.text((x, y + LINE / 2), textwrap.shorten(title, width // 6), DROPPED, font, "lm")
        page.paste(panel, (x, y + LINE))
    data = io.BytesIO()
    page.quantize(128, dither=Image.Dither.NONE).save(data, "PNG", optimize=True)
    return data.getvalue()


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ratio", type=float, default=0.25)
    parser.add_argument("--output", type=Path, default=Path("docs"))
    args = parser.parse_args(argv)
    model, processor, frames = tiny.build_model(0).eval(), tiny.build_processor(), pictures()
    for name, shown, columns, side in (("picture", frames[:1], COLUMNS, SIDE), ("video", frames, 2, SIDE // 2)):
        titled = []
        for method in of_pictures() if name == "picture" else grouping():
            config = config_of(method, args.ratio)
            if config is None:
                continue
            groups = groups_of(model, processor, config, shown)
            title = f"{method}: {len(groups.representatives)} of {groups.labels.size}"
            titled.append((title, draw_strip(shown, groups, side)))
        print(write_bytes(args.output / f"methods-{name}.png", sheet(titled, columns)))


if __name__ == "__main__":
    main()
