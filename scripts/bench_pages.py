"""PixelPrune on drawn pages and screens: how many cells it keeps, and how much time that saves.

The first table has the share of cells that is kept and the time for choosing them, for each kind of picture (as drawn,
as JPEG of quality 75, and resized) at each threshold. The second has the times of the tower, of the decoder's prefill
and of the whole (choosing, tower, merging, decoder) for one prompt with a picture as drawn: dense, PixelPrune, dpc_knn,
and ToMe in the tower, the latter two with as many tokens as PixelPrune keeps. Weights are random; settings alternate in
each round.

    python scripts/bench_pages.py [--size 3b] [--blocks 32] [--layers 36] [--pixels 1120 1568] [--output FILE]
    python scripts/bench_pages.py --show docs       # draws what is dropped of a small page and a small screen
"""

import argparse
import io
import sys
from datetime import date
from pathlib import Path

import torch
from bench.models import SIZES, build
from bench.pages import VARIANTS, inputs_of, picture
from bench.results import output_file
from bench.timing import Times, clock, clock_name, stopwatch

from ppe_npu import CompressionConfig, compress
from ppe_npu.backends import device as devices
from ppe_npu.backends.common import DTYPES
from ppe_npu.errors import InputError
from ppe_npu.files import write_bytes, write_json
from ppe_npu.inspect.show import draw_visual
from ppe_npu.models.pixels import chosen_cells

KINDS = ("page", "screen")
SHOWN = (420, 560), (560, 420)  # (width, height) of the page and the screen that --show draws
SIZE = "pages"
PARTS = {"tower": "tower_ms", "decoder": "decoder_ms", "all": "prefill_ms"}  # column of the table -> key in the file


def model_of(size: str, blocks: int | None, layers: int | None, device: torch.device, dtype: torch.dtype):
    """A model of that size, with `blocks` blocks and `layers` layers unless these are None."""
    text, vision, tied = SIZES[size]
    # A small vocabulary, because embeddings would dominate a decoder of few layers.
    text = text if layers is None else text | {"num_hidden_layers": layers, "vocab_size": 1000}
    if blocks is not None:
        full = list(range(7, blocks, 8)) or [blocks - 1]
        vision = vision | {"depth": blocks, "fullatt_block_indexes": full}
    SIZES[SIZE] = text, vision, tied
    return build(SIZE, device, dtype)


def pixelprune(threshold: float, **settings) -> CompressionConfig:
    return CompressionConfig.preset("pixelprune", threshold=threshold, **settings)


@torch.no_grad()
def shares(model, pixels: tuple[int, int], thresholds: list[float], device: torch.device) -> list[dict]:
    """The kept cells, and the milliseconds for choosing them, for every kind, variant and threshold."""
    rows = []
    for kind in KINDS:
        for variant in VARIANTS:
            inputs = inputs_of(picture(kind, variant, *_turned(kind, pixels)), model)
            given = (inputs["pixel_values"], inputs["image_grid_thw"].tolist(), None)  # no video
            for threshold in thresholds:
                compression, found = compress(model, pixelprune(threshold)).compression, []
                asked = (compression, compression.config.at_pixels, *given)
                spent = stopwatch(lambda: found.append(chosen_cells(*asked)), device)  # noqa: B023
                kept = found[0].kept
                row = {"kind": kind, "variant": variant, "threshold": threshold, "cells": len(kept)}
                rows.append(row | {"kept": int(kept.sum()), "select_ms": spent})
                share = f"{kept.float().mean():>9.1%}"
                print(f"{kind:>8}{variant:>10}{threshold:>8}{len(kept):>7}{share}{spent:>11.1f}", flush=True)
    return rows


def _turned(kind: str, pixels: tuple[int, int]) -> tuple[int, int]:
    return (min(pixels), max(pixels)) if kind == "page" else (max(pixels), min(pixels))


def settings_of(kept: dict[float, int], cells: int, blocks: int) -> dict[str, CompressionConfig]:
    """The settings that are compared. kept: for each threshold, the number of cells that PixelPrune keeps."""
    out = {"dense": CompressionConfig.preset("dense")}
    joins = sorted({blocks // 8, blocks // 4, blocks * 3 // 8})
    for threshold, count in kept.items():
        ratio = (count - 0.5) / cells  # ceil(ratio * cells) is count
        out[f"pixelprune {threshold}"] = pixelprune(threshold)
        out[f"dpc_knn, {count}"] = CompressionConfig.preset("keep_one", ratio=ratio)
        out[f"tome_tower, {count}"] = CompressionConfig.preset("tome_tower", ratio=ratio, merge_blocks=joins)
    return out


@torch.no_grad()
def timed(model, inputs: dict, device: torch.device) -> tuple[float, float, float]:
    """Milliseconds of the tower, of the decoder, and of everything from pixels to the first token's logits."""
    now, marks = clock(device), []

    def mark(*_) -> None:
        devices.synchronize(device)
        marks.append(now())

    parts = (model.model.visual, model.model.language_model)
    hooks = [hook(mark) for part in parts for hook in (part.register_forward_pre_hook, part.register_forward_hook)]
    whole = stopwatch(lambda: model(**inputs, logits_to_keep=1), device)
    for hook in hooks:
        hook.remove()
    return (marks[1] - marks[0]) * 1e3, (marks[3] - marks[2]) * 1e3, whole


def compare(model, kind: str, pixels: tuple[int, int], rows: list[dict], rounds: int, device: torch.device) -> dict:
    """{setting: its tokens, and median milliseconds of tower, decoder and everything}."""
    inputs = inputs_of(picture(kind, "png", *_turned(kind, pixels)), model)
    own = [row for row in rows if (row["kind"], row["variant"]) == (kind, "png")]
    kept, cells = {row["threshold"]: row["kept"] for row in own}, own[0]["cells"]
    settings = settings_of(kept, cells, model.config.vision_config.depth)
    spent: dict[str, list[tuple[float, float, float]]] = {name: [] for name in settings}
    tokens = {}
    for number in range(rounds + 1):
        for name, config in settings.items():
            compress(model, config)
            times = timed(model, inputs, device)
            tokens[name] = model.compression.report.tokens_after
            if number:  # the first round warms up
                spent[name].append(times)
    out = {}
    for name, rounds_of in spent.items():
        medians = [Times(times).median for times in zip(*rounds_of)]
        out[name] = {"tokens": tokens[name]} | dict(zip(PARTS.values(), medians))
        shares = [f"{value / out['dense'][key]:>8.1%}" for key, value in list(out[name].items())[1:]]
        told = "".join(f"{median:>12.0f}" for median in medians)
        print(f"{kind:>8}  {name:<20}{tokens[name]:>6}{told}{''.join(shares)}", flush=True)
    return out


def show(model, folder: Path, threshold: float) -> None:
    """Draw the dropped cells of a small page and a small screen, and the cells in whose groups they are."""
    for kind, size in zip(KINDS, SHOWN):
        image = picture(kind, "png", *size)
        compress(model, pixelprune(threshold, positions="ppe", k=4)).compression.keep_groups = True
        with torch.no_grad():
            model(**inputs_of(image, model))
        (visual,) = model.compression.trace.visuals()
        path = folder / f"pixels-{kind}.png"
        drawn = io.BytesIO()
        draw_visual([image], visual).quantize(48).save(drawn, "PNG", optimize=True)
        write_bytes(path, drawn.getvalue())
        print(f"{path}: {len(drawn.getvalue())} bytes")


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", help="cpu, cuda, npu or auto")
    parser.add_argument("--dtype", choices=DTYPES, help="dtype (default: bf16 on a device, fp32 on a CPU)")
    parser.add_argument("--size", choices=[name for name in SIZES if name != SIZE], default="3b")
    parser.add_argument("--blocks", type=int, help="blocks of the tower (default: all)")
    parser.add_argument("--layers", type=int, help="layers of the decoder (default: all)")
    parser.add_argument("--pixels", type=int, nargs=2, default=[1120, 1568], help="picture sides, multiples of 28")
    parser.add_argument("--thresholds", type=float, nargs="+", default=[0.0, 0.02, 0.1])
    parser.add_argument("--rounds", type=int, default=3, help="rounds of comparing prefills (0: none)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    parser.add_argument("--output", type=output_file, help="JSON file for the numbers")
    parser.add_argument("--show", help="draw what is dropped to this folder, and measure nothing")
    args = parser.parse_args(argv)
    if any(side < 28 or side % 28 for side in args.pixels):
        raise InputError(f"--pixels {args.pixels}: give multiples of 28")
    device = devices.resolve(args.device)
    torch.set_num_threads(args.threads)
    if args.show:
        show(model_of("tiny", None, None, device, torch.float32), Path(args.show), args.thresholds[-1])
        return
    dtype = args.dtype or ("fp32" if devices.on_cpu(device) else "bf16")
    model = model_of(args.size, args.blocks, args.layers, device, DTYPES[dtype])
    facts = {"device": devices.describe(device), "dtype": dtype, "clock": clock_name(device), "date": str(date.today())}
    depth, layers = model.config.vision_config.depth, model.config.text_config.num_hidden_layers
    facts |= {"size": args.size, "blocks": depth, "layers": layers, "pixels": args.pixels}
    print(f"{facts['device']['name']}, {dtype}, {args.size}, {depth} blocks, {layers} layers, {facts['clock']}")
    print(f"{'picture':>8}{'variant':>10}{'tau':>8}{'cells':>7}{'kept':>9}{'select ms':>11}")
    result = facts | {"shares": shares(model, args.pixels, args.thresholds, device), "prefill": {}}
    columns = "".join(f"{name + ' ms':>12}" for name in PARTS) + "".join(f"{name:>8}" for name in PARTS)
    print(f"{'picture':>8}  {'setting':<20}{'tokens':>6}{columns}")
    for kind in KINDS if args.rounds else ():
        result["prefill"][kind] = compare(model, kind, args.pixels, result["shares"], args.rounds, device)
    if args.output:
        write_json(args.output, result)


if __name__ == "__main__":
    try:
        main()
    except (InputError, devices.DeviceError) as error:
        sys.exit(f"error: {error}")
