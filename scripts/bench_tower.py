"""The vision tower of Qwen2.5-VL-7B at its real width: dense, IPCV, and ToMe merging to the share that IPCV keeps.

"ipcv_released" works as the published code: it uses that code's frame borders, and where dropped patches serve as keys
and values, they are queries, too, whose results are discarded. In "ipcv" only the patches that stay are queries.

Weights are random, and --blocks is the number of blocks (32 in the checkpoint). Methods alternate in each round; on one
thread of a CPU the clock is its CPU time. "share" is the median over rounds of the ratio to the dense tower's time;
"counted" is the ratio of the blocks' operations, below which the time can only fall by faster execution. Above 4,096
patches, a single round is measured without a warm-up.

    python scripts/bench_tower.py --methods ipcv ipcv_released --output tower.json      # 10 to 15 minutes of a core

    python scripts/bench_tower.py [--device cpu] [--patches 1024 2304 4096 16384] [--blocks 16] [--rounds 3]
                                  [--methods ipcv ipcv_released tome] [--output FILE]
"""

import argparse
import contextlib
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import date
from math import isqrt
from statistics import median

import torch
from bench.models import SIZES, build
from bench.results import output_file
from bench.timing import clock_name, stopwatch

from ppe_npu import CompressionConfig, compress, restore
from ppe_npu.backends import device as devices
from ppe_npu.backends.common import DTYPES
from ppe_npu.engine.tower_pass import pass_of, pools_of_grids
from ppe_npu.errors import InputError
from ppe_npu.files import write_json
from ppe_npu.inspect.report import Stopwatch
from ppe_npu.inspect.tower_work import TowerReport
from ppe_npu.models import tower_blocks
from ppe_npu.models.forward_pass import KEYWORD
from ppe_npu.models.tower_blocks import TowerBlock, vision_attention

SIZE, METHODS, LONG = "tower", ("ipcv", "ipcv_released", "tome"), 4096


def model_of(blocks: int, device: torch.device, dtype: torch.dtype):
    """The tower with a minimal decoder. One block in eight attends to the whole picture, as in the checkpoint."""
    text, _, tied = SIZES["tiny"]
    SIZES[SIZE] = text, {"depth": blocks, "fullatt_block_indexes": list(range(7, blocks, 8))}, tied
    return build(SIZE, device, dtype)


class AllAsk(TowerBlock):
    """A block in which patches that have left are queries, too, as in the published code."""

    spares_queries = False

    def attended(self, rows, asking, asked, borders):
        made, _ = vision_attention(self.module.attn, self.module.norm1(rows), self.table, self.segments())
        return rows.index_select(0, asking) + made.index_select(0, asking)


@contextlib.contextmanager
def all_asking(wanted: bool) -> Iterator[None]:
    """Within this context, if `wanted`, the tower's passes use AllAsk blocks."""
    if wanted:
        tower_blocks.TowerBlock = AllAsk
    try:
        yield
    finally:
        tower_blocks.TowerBlock = TowerBlock


def run(model, pixels: torch.Tensor, grid: torch.Tensor) -> float:
    """Run a pass of the tower; returns the operations of its blocks relative to the dense tower's, by formula."""
    compression = vars(model).get("compression")
    if compression is None:
        model.model.visual(pixels, grid_thw=grid)
        return 1.0
    pools = pools_of_grids(compression.inside.pool, grid, len(pixels))
    passing = pass_of(compression.inside, pools, compression.vision, pixels.device)
    passing.report = TowerReport(*compression.widths, Stopwatch(pixels.device))
    released = getattr(compression.inside, "released", False)
    with all_asking(released):
        model.model.visual(pixels, grid_thw=grid, **{KEYWORD: passing})
    report = passing.report
    if released:
        for number, work in report.blocks.items():
            if work.ran[0] == work.whole[0]:  # all rows are queries, and all of their outputs are projected
                ran = (*work.ran[:2], work.whole[2])
                report.blocks[number] = replace(work, ran=ran, lost=work.ran[0] - work.ran[1])
    return report.flops / report.dense_flops


@torch.no_grad()
def measure(
    model, patches: int, keep: float, device: torch.device, rounds: int, methods: Sequence[str], cold: bool = False
) -> dict[str, float]:
    """Median milliseconds of the dense tower and of each method, and each method's ratio to the dense tower: in time
    ("share", "least" and "most" over rounds) and in operations ("counted")."""
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
        "ipcv_released": CompressionConfig.preset("ipcv", keep=keep, released=True),
        "tome": CompressionConfig.preset("tome_tower", ratio=keep, merge_blocks=joins),
    }
    times: dict[str, list[float]] = {name: [] for name in ("dense", *methods)}
    shares: dict[str, float] = {}
    for number in range(cold, rounds + 1):
        for name, own in times.items():
            restore(model) if name == "dense" else compress(model, configs[name])
            spent = stopwatch(lambda name=name: shares.update({name: run(model, pixels, grid)}), device)
            if number:
                own.append(spent)
    row = {"dense_ms": median(times["dense"])}
    for name in methods:
        ratios = [mine / dense for mine, dense in zip(times[name], times["dense"])]
        told = {"share": median(ratios), "least": min(ratios), "most": max(ratios), "counted": shares[name]}
        row |= {f"{name}_ms": median(times[name]), **{f"{name}_{key}": value for key, value in told.items()}}
    return row


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", help="cpu, cuda, npu or auto")
    parser.add_argument("--dtype", choices=DTYPES, help="dtype (default: bf16 on a device, fp32 on a CPU)")
    parser.add_argument("--patches", nargs="+", type=int, default=[1024, 2304, 4096, 16384])
    parser.add_argument("--blocks", type=int, default=16)
    parser.add_argument("--keep", type=float, default=0.35)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    parser.add_argument("--cold", action="store_true", help="skip the warm-up round")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    parser.add_argument("--output", type=output_file, help="JSON file for the numbers")
    args = parser.parse_args(argv)
    device = devices.resolve(args.device)
    torch.set_num_threads(args.threads)
    dtype = args.dtype or ("fp32" if devices.on_cpu(device) else "bf16")
    facts = {"device": devices.describe(device), "dtype": dtype, "clock": clock_name(device), "date": str(date.today())}
    print(f"{facts['device']['name']}, {dtype}, {args.blocks} blocks, {args.rounds} rounds, {facts['clock']}")
    model, rows = model_of(args.blocks, device, DTYPES[dtype]), {}
    print(
        f"{'patches':>8}{'dense ms':>12}"
        + "".join(f"{name + ' ms':>17}{'share':>9}{'least':>9}{'most':>9}{'counted':>9}" for name in args.methods)
    )
    started = time.perf_counter()
    for patches in args.patches:
        rounds, cold = (1, True) if patches > LONG else (args.rounds, args.cold)
        row = rows[patches] = measure(model, patches, args.keep, device, rounds, args.methods, cold)
        told = "".join(
            f"{value:>9.1%}" if not name.endswith("_ms") else f"{value:>{12 if name == 'dense_ms' else 17}.0f}"
            for name, value in row.items()
        )
        print(f"{patches:>8}{told}", flush=True)
        if args.output:
            write_json(args.output, {**facts, "blocks": args.blocks, "keep": args.keep, "rows": rows})
    print(f"{(time.perf_counter() - started) / 60:.1f} minutes")


if __name__ == "__main__":
    try:
        main()
    except (InputError, devices.DeviceError) as error:
        sys.exit(f"error: {error}")
