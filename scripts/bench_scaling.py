"""How time and memory of the merge grow with a frame's tokens, with frames, and with samples: tables and one picture.

The merge is the engine's for a whole prompt (clustering, means, K positions, assembling the prompt; preset ppe at ratio
0.45, K = 8). Time is the thread's CPU time, with the sizes of an axis measured alternately; memory is torch's peak
beyond the features. Each curve is compared with the order that theory predicts. The tokens of a frame are compared with
each other, so time and memory grow with their square. Frames and samples are merged independently, so time grows with
their number, and memory only with the merged tokens, as distances are held for a few frames at a time.

"order" is the exponent of the size between the last two sizes of a curve.

    python scripts/bench_scaling.py [--channels 2048] [--rounds 2] [--output docs/scaling.png]
"""

import argparse
import math
import statistics
from collections.abc import Callable
from pathlib import Path

import torch
from bench.decoder import peak_mib
from bench.plots import drawn, plot_scaling
from bench.results import output_file
from bench.timing import thread_ms

from ppe_npu import CompressionConfig
from ppe_npu.engine.compression import Compression
from ppe_npu.engine.positions import contiguous_channels
from ppe_npu.engine.spans import VisionTokens
from ppe_npu.files import write_json

VIDEO, FRAME = 9, 256
# axis -> (sizes, function from a size to (samples, frames, tokens per frame), expected order of time and memory)
AXES: dict[str, tuple[tuple[int, ...], Callable[[int], tuple[int, int, int]], int]] = {
    "tokens of a frame": ((256, 1024, 4096, 16384), lambda size: (1, 1, size), 2),
    "frames of 256 tokens": ((1, 4, 16, 64, 256), lambda size: (1, size, FRAME), 1),
    "samples of 4 frames": ((1, 2, 4, 8, 16), lambda size: (size, 4, FRAME), 1),
}


def merging(samples: int, frames: int, tokens: int, channels: int) -> Callable[[], object]:
    """A function that merges `samples` prompts of one word and one video each."""
    height = 2 ** (int(math.log2(tokens)) // 2)
    vision = VisionTokens(image_token_id=8, video_token_id=VIDEO, merge_size=2, tokens_per_second=2)
    compression = Compression(CompressionConfig.preset("ppe"), vision, contiguous_channels([16, 24, 24]), 12)
    ids = torch.full((samples, 1 + frames * tokens), VIDEO)
    ids[:, 0] = 1
    grid = torch.tensor([[frames, 2 * height, 2 * tokens // height]] * samples)
    plan = compression.plan(ids, None, None, grid, None)
    plan.on(ids.device)
    features = torch.randn(samples * frames * tokens, channels, generator=torch.Generator().manual_seed(0))
    text = torch.zeros(samples, channels)
    return lambda: compression.prefill(plan, text, features)


@torch.no_grad()
def measure(axis: str, channels: int, rounds: int, count: int | None = None) -> list[dict]:
    """A row for each of the first `count` sizes: median milliseconds over rounds, and peak MiB."""
    sizes, shape, _ = AXES[axis]
    sizes = sizes[:count]
    runs = {size: merging(*shape(size), channels) for size in sizes}
    peaks = {size: peak_mib(run) for size, run in runs.items()}  # also the warm-up
    times = [{size: thread_ms(run) for size, run in runs.items()} for _ in range(rounds)]
    return [{"size": n, "ms": statistics.median(one[n] for one in times), "mib": peaks[n]} for n in sizes]


def order(rows: list[dict], key: str) -> float:
    """The exponent with which a curve grows between its last two sizes."""
    first, last = rows[-2:]
    return math.log(last[key] / first[key]) / math.log(last["size"] / first["size"])


def table(axis: str, rows: list[dict], theory: int) -> str:
    lines = [f"{axis:<22}{'ms':>12}{'MiB':>12}"]
    lines += [f"{row['size']:<22}{row['ms']:>12.1f}{row['mib']:>12.1f}" for row in rows]
    measured = f"{order(rows, 'ms'):>12.2f}{order(rows, 'mib'):>12.2f}"
    return "\n".join([*lines, f"{'order':<22}{measured}   (theory: {theory})"])


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--channels", type=int, default=2048)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--sizes", type=int, help="number of sizes per axis, at least 2 (default: all)")
    parser.add_argument("--output", type=output_file, help="picture file; the numbers are written beside it")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    result = {}
    for axis, (*_, theory) in AXES.items():
        rows = measure(axis, args.channels, args.rounds, None if args.sizes is None else max(2, args.sizes))
        result[axis] = {"theory": theory, "rows": rows}
        print(f"{table(axis, rows, theory)}\n", flush=True)
    if args.output:
        write_json(Path(args.output).with_suffix(".json"), {"channels": args.channels, "axes": result})
        print(drawn(plot_scaling, result, Path(args.output)))


if __name__ == "__main__":
    main()
