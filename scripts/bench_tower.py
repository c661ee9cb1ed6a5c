"""The vision tower of Qwen2.5-VL-7B at its real width: dense, IPCV, and ToMe that joins to the share that IPCV keeps.

Weights are random, and there are as many blocks as --blocks says (32 in the checkpoint). They take turns, round
after round; of one thread of a CPU the clock is the time that it computed.

    python scripts/bench_tower.py [--device cpu] [--patches 1024 2304 4096] [--blocks 16] [--rounds 3]
                                  [--methods ipcv tome] [--output FILE]
"""

import argparse
import sys
from collections.abc import Sequence
from datetime import date
from math import isqrt

import torch
from bench.models import SIZES, build
from bench.timing import Times, clock_name, stopwatch

from ppe_npu import CompressionConfig, compress, restore
from ppe_npu.backends import device as devices
from ppe_npu.backends.common import DTYPES
from ppe_npu.errors import InputError
from ppe_npu.files import write_json

SIZE, METHODS = "tower", ("ipcv", "tome")


def model_of(blocks: int, device: torch.device, dtype: torch.dtype):
    """The tower with a decoder that is next to nothing. One block in eight attends to all, as in the checkpoint."""
    text, _, tied = SIZES["tiny"]
    SIZES[SIZE] = text, {"depth": blocks, "fullatt_block_indexes": list(range(7, blocks, 8))}, tied
    return build(SIZE, device, dtype)


@torch.no_grad()
def measure(
    model, patches: int, keep: float, device: torch.device, rounds: int, methods: Sequence[str]
) -> dict[str, float]:
    """Milliseconds of the dense tower and of each method, and the medians of the methods' ratios to it."""
    side, vision = isqrt(patches), model.config.vision_config
    if side * side != patches or side % vision.spatial_merge_size:
        raise InputError(f"patches={patches}: give the square of an even number")
    values = vision.in_channels * vision.temporal_patch_size * vision.patch_size**2
    noise = torch.Generator(device).manual_seed(2)
    pixels = torch.randn(patches, values, generator=noise, device=device).to(model.dtype)
    grid = torch.tensor([[1, side, side]], device=device)
    joins = sorted({vision.depth // 8, vision.depth // 4, vision.depth * 3 // 8})
    configs = {
        "ipcv": CompressionConfig.preset("ipcv", keep=keep),
        "tome": CompressionConfig.preset("tome_tower", ratio=keep, merge_blocks=joins),
    }
    times: dict[str, list[float]] = {name: [] for name in ("dense", *methods)}
    for number in range(rounds + 1):
        for name, own in times.items():
            restore(model) if name == "dense" else compress(model, configs[name])
            spent = stopwatch(lambda: model.model.visual(pixels, grid_thw=grid), device)
            if number:
                own.append(spent)
    dense, *others = (Times(tuple(own)) for own in times.values())
    row = {"dense_ms": dense.median}
    for name, own in zip(methods, others):
        row |= {f"{name}_ms": own.median, "share" if name == "ipcv" else f"{name}_share": 1 / own.ratio(dense)}
    return row


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", help="cpu, cuda, npu or auto")
    parser.add_argument("--dtype", choices=DTYPES, help="(default: bf16 on a device, fp32 on a CPU)")
    parser.add_argument("--patches", nargs="+", type=int, default=[1024, 2304, 4096])
    parser.add_argument("--blocks", type=int, default=16)
    parser.add_argument("--keep", type=float, default=0.35)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    parser.add_argument("--threads", type=int, default=1, help="of a CPU")
    parser.add_argument("--output", help="a JSON file for the numbers")
    args = parser.parse_args(argv)
    device = devices.resolve(args.device)
    torch.set_num_threads(args.threads)
    dtype = args.dtype or ("fp32" if devices.on_cpu(device) else "bf16")
    facts = {"device": devices.describe(device), "dtype": dtype, "clock": clock_name(device), "date": str(date.today())}
    print(f"{facts['device']['name']}, {dtype}, {args.blocks} blocks, {args.rounds} rounds, {facts['clock']}")
    model, rows = model_of(args.blocks, device, DTYPES[dtype]), {}
    print(f"{'patches':>8}{'dense ms':>12}" + "".join(f"{name + ' ms':>12}{'share':>9}" for name in args.methods))
    for patches in args.patches:
        row = rows[patches] = measure(model, patches, args.keep, device, args.rounds, args.methods)
        told = "".join(f"{value:>9.1%}" if "share" in name else f"{value:>12.0f}" for name, value in row.items())
        print(f"{patches:>8}{told}", flush=True)
        if args.output:
            write_json(args.output, {**facts, "blocks": args.blocks, "keep": args.keep, "rows": rows})


if __name__ == "__main__":
    try:
        main()
    except (InputError, devices.DeviceError) as error:
        sys.exit(f"error: {error}")
