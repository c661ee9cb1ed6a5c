"""Prefill, decoding and a training step, with and without compression: milliseconds, tokens/s, memory.

Models have random weights and are built from the public configs of Qwen2.5-VL-3B and -7B (scripts/bench/models.py), or
scaled down for a CPU. The batch size is 1; settings are measured alternately in each round, and medians are shown.

prefill: from pixels to the last token's logits. The vision tower is also measured alone in the same rounds, and
    `decoder` is the rest (left out if patches are dropped before or in the tower); `merge` is the share of the time
    spent on compression, including planning on the host. Peak memory is what torch allocates beyond model and inputs.
decode: 32 tokens after that prompt, one by one, with nothing to compress. Peak memory is beyond model and cache.
train: forward, backward and AdamW, with gradient checkpointing for 3b and 7b; the vision tower is frozen.

    python scripts/bench_prefill.py [--device cpu] [--sizes 3b 7b] [--cases video-64x256] [--parts prefill decode train]
                                    [--compression all] [--rounds 5] [--seconds 60] [--output FOLDER/prefill.json]

--compression names what is compared with the dense model, in place of the presets: "divprune:ratio=0.25", or all, every
method at 45 % of the tokens.

The JSON is written after every part of every case, and an existing file is extended, so that a long run may be split
into several, or killed. A plot of the same name is written beside it.
"""

import argparse
import math
import sys
from datetime import date
from pathlib import Path

import torch
from bench.decoder import PARTS, measure_part, named
from bench.models import PROMPTS, SIZES, build
from bench.operators import operators
from bench.plots import drawn, plot_prefill
from bench.results import earlier, faults, output_file
from bench.timing import clock_name

from ppe_npu.backends import device as devices
from ppe_npu.backends.common import DTYPES
from ppe_npu.errors import InputError
from ppe_npu.files import write_json

CASES = {
    "tiny": ("video-3x16",),
    "cpu": ("video-16x128",),
    "3b": ("image-1280", "image-4096", "video-64x256"),
    "7b": ("image-1280", "image-4096", "video-64x256"),
}
COLUMNS = {
    "prefill": (
        ("length", "output_length", "d"), ("ms", "ms", ".1f"), ("fastest", "fastest_ms", ".1f"),
        ("slowest", "slowest_ms", ".1f"), ("tower ms", "tower_ms", ".1f"), ("decoder ms", "decoder_ms", ".1f"),
        ("x dense", "speedup", ".2f"), ("decoder x", "decoder_speedup", ".2f"), ("merge", "compression_share", ".1%"),
        ("tokens/s", "tokens_per_s", ".0f"), ("peak MiB", "peak_mib", ".0f"), ("KV MiB", "kv_mib", ".1f"),
    ),
    "decode": (
        ("ms/token", "ms", ".2f"), ("fastest", "fastest_ms", ".2f"), ("slowest", "slowest_ms", ".2f"),
        ("x dense", "speedup", ".2f"), ("tokens/s", "tokens_per_s", ".1f"), ("peak MiB", "peak_mib", ".1f"),
    ),
    "train": (
        ("ms", "ms", ".1f"), ("fastest", "fastest_ms", ".1f"), ("slowest", "slowest_ms", ".1f"),
        ("x dense", "speedup", ".2f"), ("merge", "compression_share", ".1%"), ("tokens/s", "tokens_per_s", ".0f"),
        ("peak MiB", "peak_mib", ".0f"),
    ),
}  # fmt: skip


def table(part: str, rows: dict[str, dict]) -> str:
    """The table of one part of one case; for a setting that could not run, the reason."""
    columns = COLUMNS[part]
    head = f"{part:<20}" + "".join(f"{title:>11}" for title, *_ in columns)
    lines = [head, "-" * len(head)]
    for setting, row in rows.items():
        if "not_measured" in row:
            lines.append(f"{setting:<20} not measured: {row['not_measured']}")
            continue
        cells = (f"{row[key]:>11{form}}" if row.get(key) is not None else " " * 11 for _, key, form in columns)
        lines.append(f"{setting:<20}{''.join(cells)}")
    return "\n".join(lines)


def parsed(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", help="cpu, cuda, npu or auto")
    parser.add_argument("--dtype", choices=DTYPES, help="dtype (default: bf16 on a device, fp32 on a CPU)")
    parser.add_argument("--sizes", nargs="+", choices=SIZES, help="models (default: 3b 7b on a device, cpu on a CPU)")
    parser.add_argument("--cases", nargs="+", choices=PROMPTS, help="prompts (default: by the size)")
    parser.add_argument("--parts", nargs="*", choices=PARTS, default=PARTS, help="parts (none: only merge operators)")
    parser.add_argument("--compression", nargs="+", default=(), metavar="NAME[:KEY=VALUE,...]", help="what to compare")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=math.inf, help="start no further round of a part after this")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="CPU threads")
    parser.add_argument("--output", type=output_file, help="JSON file for the numbers")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    args = parsed(argv)
    device = devices.resolve(args.device)
    torch.set_num_threads(args.threads)
    on_cpu = devices.on_cpu(device)
    dtype = args.dtype or ("fp32" if on_cpu else "bf16")
    facts = {"device": devices.describe(device), "dtype": dtype, "clock": clock_name(device), "rounds": args.rounds}
    if args.compression:
        named(args.compression, layers=3)  # raises before any model is built
        facts["compression"] = args.compression
    result = earlier(args.output, facts, "parts")
    print(
        ", ".join(f"{key} {value}" for key, value in facts["device"].items()),
        f", {dtype}, {args.rounds} rounds, {facts['clock']}",
        sep="",
    )
    failed = []
    for size in args.sizes or (["cpu"] if on_cpu else ["3b", "7b"]):
        model = build(size, device, DTYPES[dtype])
        for case in args.cases or CASES[size]:
            for part in args.parts:
                asked = {"checkpointing": size in ("3b", "7b"), "seconds": args.seconds}
                asked |= {"compression": args.compression}
                rows = measure_part(part, model, PROMPTS[case], device, args.rounds, **asked)
                result["parts"][f"{size} {case} {part}"] = {"date": str(date.today()), "rows": rows}
                print(f"\n{size}, {case}\n{table(part, rows)}", flush=True)
                failed += faults({name: row["not_measured"] for name, row in rows.items() if "not_measured" in row})
                if args.output:
                    write_json(args.output, result)
        del model
    if on_cpu:
        result["operators"] = {frames: operators(frames) for frames in (1, 16, 64)}
        said = (f"{n} frames {c['ours']}, released {c['released']}" for n, c in result["operators"].items())
        print("\noperators of a merge: " + "; ".join(said))
    if args.output:
        write_json(args.output, result)
        print(f"{args.output}, {drawn(plot_prefill, result, Path(args.output).with_suffix('.png'))}")
    if failed:
        sys.exit("error: failed: " + "; ".join(failed))


if __name__ == "__main__":
    try:
        main()
    except (InputError, devices.DeviceError) as error:
        sys.exit(f"error: {error}")
