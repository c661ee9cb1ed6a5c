"""From a picture's pixels to the first token: which combination of steps is fastest with equally many tokens.

Qwen2.5-VL-3B and -7B at their real widths, with random weights, a drawn page as the picture (with a quarter as many
visual tokens as patches) and 66 tokens of text. The time covers choosing cells, the tower, merging, the decoder, and
the last token's logits. All settings but "dense" and "ipcv" give the decoder the same number of visual tokens.

Only what differs in depth is built: seven blocks of the tower, one of each kind that IPCV makes of the 32 (before
patches leave; where they leave; while those that left still serve as keys, and after that, each both with windows and
with the whole picture; the last, where they come back), and --layers decoder layers, which are all alike. Each module
is timed in its place. The time of the whole depth is the sum in which each block counts as often as its kind occurs in
the 32, each layer as often as the decoder has layers, and the rest once. The same sum is taken of FLOPs, as torch
counts them (with the zeros of a causal mask).

Settings are measured alternately in each round; on one thread of a CPU the clock is its CPU time.

    python scripts/bench_first_token.py [--sizes 3b 7b] [--patches 4096] [--layers 2] [--rounds 3] [--output FILE]

The file is written after every pass, and an interrupted run resumes from it: --rounds includes the rounds in the file.
"""

import argparse
import functools
import itertools
import statistics
import sys
from collections.abc import Callable
from datetime import date
from math import isqrt

import numpy as np
import torch
from bench.models import SIZES, build
from bench.pages import inputs_of, picture
from bench.results import earlier, output_file
from bench.timing import Times, clock, clock_name

from ppe_npu import CompressionConfig, compress, restore
from ppe_npu.backends import device as devices
from ppe_npu.backends.common import DTYPES
from ppe_npu.errors import InputError
from ppe_npu.files import write_json
from ppe_npu.inspect.flops import flop_counter
from ppe_npu.methods import DPCKNN, IPCV, PixelPrune

RATIO, GOAL, ENOUGH, SHORT = 0.45, 0.45, 3, "short"
DENSE, PPE, WARM = "dense", "ppe", "pixelprune + ipcv"
# Each block that is built: how many of the 32 it stands for, and whether it attends to the whole picture.
BLOCKS = ((3, False), (1, False), (5, False), (1, True), (19, False), (2, True), (1, True))
IPCV_HERE = IPCV(prune_block=1, stabilized_blocks=3)  # acts on BLOCKS as IPCV() does on the 32 blocks


def settings(tokens: int) -> dict[str, CompressionConfig | None]:
    """The settings that are compared on a picture of `tokens` tokens."""
    few = DPCKNN(RATIO).kept(tokens)
    more = round((few * tokens) ** 0.5)  # cells kept at the pixels, so that the merge after it keeps the same share
    merge, rest = DPCKNN(RATIO), DPCKNN((few - 0.5) / more)  # the latter keeps `few` of `more`
    prune, half = (PixelPrune(max_kept=most, fill=True) for most in (few, more))
    steps = {
        PPE: [merge],
        "pixelprune": [prune],
        "ipcv": [IPCV_HERE],
        "ipcv + ppe": [IPCV_HERE, merge],
        "pixelprune + ppe": [half, rest],
        WARM: [prune, IPCV_HERE],
        "pixelprune + ipcv + ppe": [half, IPCV_HERE, rest],
    }
    made = {name: CompressionConfig(steps=own, positions="ppe", k=8) for name, own in steps.items()}
    return {DENSE: None, **made}


def model_of(
    size: str, layers: int, device: torch.device, dtype: torch.dtype, kinds: tuple[tuple[int, bool], ...] = BLOCKS
):
    """The model with a small vocabulary, as only the last token's logits are computed."""
    text, vision, _ = SIZES[size]
    narrow = {name: value for name, value in vision.items() if name != "depth"}
    whole = [number for number, (_, full) in enumerate(kinds) if full]
    tower = narrow | {"depth": len(kinds), "fullatt_block_indexes": whole}
    SIZES[SHORT] = text | {"num_hidden_layers": layers, "vocab_size": 1000}, tower, True
    return build(SHORT, device, dtype)


def page(model, patches: int) -> dict[str, torch.Tensor]:
    """Inputs with a page of this many patches."""
    side, vision = isqrt(patches), model.config.vision_config
    if side * side != patches or side % vision.spatial_merge_size:
        raise InputError(f"patches={patches}: give the square of an even number")
    return inputs_of(picture("page", "png", *[side * vision.patch_size] * 2), model)


def spent(
    model, inputs: dict, read: Callable[[], float], depth: int, kinds: tuple[tuple[int, bool], ...] = BLOCKS
) -> dict[str, float]:
    """What one pass adds to the counter that `read` reads: by the model as built ("built"), and by one as deep as the
    checkpoint ("deep"), which is split into the tower's blocks, of these kinds, the decoder's layers, and the rest."""
    blocks, layers = list(model.model.visual.blocks), list(model.model.language_model.layers)
    used = dict.fromkeys((*blocks, *layers), 0.0)

    def before(module, *_) -> None:
        used[module] -= read()

    def after(module, *_) -> None:
        used[module] += read()

    hooks = [module.register_forward_pre_hook(before) for module in used]
    hooks += [module.register_forward_hook(after) for module in used]
    try:
        start = read()
        model(**inputs, logits_to_keep=1)
        whole = read() - start
    finally:
        for hook in hooks:
            hook.remove()
    rest = whole - sum(used.values())
    tower = sum(times * used[block] for (times, _), block in zip(kinds, blocks))
    decoder = sum(used[layer] for layer in layers) * depth / len(layers)
    return {"built": whole, "tower": tower, "decoder": decoder, "rest": rest, "deep": tower + decoder + rest}


def counted(model, inputs: dict, depth: int, kinds: tuple[tuple[int, bool], ...] = BLOCKS) -> dict[str, float]:
    """FLOPs of a pass, split as by spent()."""
    with flop_counter() as counter:
        return spent(model, inputs, counter.get_total_flops, depth, kinds)


def passed(model, inputs: dict, read: Callable[[], float], depth: int) -> list[dict[str, float]]:
    """[seconds, FLOPs] of a pass, both split as by spent(). Counting FLOPs takes less than 1 % of the time, because the
    pass has few and large operators."""
    with flop_counter() as counter:
        both = spent(model, inputs, lambda: np.array([read(), counter.get_total_flops()]), depth)
    return [{part: float(value[which]) for part, value in both.items()} for which in (0, 1)]


@torch.no_grad()
def measure(
    size: str,
    patches: int,
    layers: int,
    rounds: int,
    device: torch.device,
    dtype: torch.dtype,
    found: dict,
    save: Callable[[], None],
) -> dict:
    """Add passes to `found`, an earlier result or {}, until it has `rounds` rounds: for each setting, "tokens", "flops"
    and "passes" (seconds, one pass a round), both split as by spent(). A first pass is only a warm-up. save() is called
    after each pass."""
    model, depth = model_of(size, layers, device, dtype), SIZES[size][0]["num_hidden_layers"]
    inputs, now = page(model, patches), clock(device)
    visual = int((inputs["input_ids"] == model.config.image_token_id).sum())
    configs = settings(visual)

    def run(name: str) -> list[dict[str, float]]:
        restore(model) if configs[name] is None else compress(model, configs[name])
        return passed(model, inputs, read, depth)

    def read() -> float:
        devices.synchronize(device)
        return now()

    run(WARM)
    for number, name in itertools.product(range(rounds), configs):
        if number >= len(found.get(name, {}).get("passes", ())):
            seconds, flops = run(name)
            tokens = visual if configs[name] is None else model.compression.report.tokens_after
            own = found.setdefault(name, {"tokens": tokens, "flops": flops, "passes": []})
            own["passes"].append(seconds)
            save()
    return found


def row_of(own: dict, dense: dict) -> dict:
    """A setting's row: median seconds over rounds, and the median, least and most of the rounds' ratios to dense."""
    deep, all_of = (Times(tuple(one["deep"] for one in each["passes"])) for each in (own, dense))
    shares = [mine / theirs for mine, theirs in zip(deep.rounds, all_of.rounds)]
    row = {f"{part}_s": statistics.median(one[part] for one in own["passes"]) for part in own["passes"][0]}
    return {
        "tokens": own["tokens"],
        "rounds": len(shares),
        **row,
        "share": statistics.median(shares),
        "least_share": min(shares),
        "most_share": max(shares),
        "tflops": own["flops"]["deep"] / 1e12,
        "built_tflops": own["flops"]["built"] / 1e12,
        "flops_share": own["flops"]["deep"] / dense["flops"]["deep"],
    }


def table(rows: dict[str, dict]) -> str:
    columns = ("tokens", "built s", "tower s", "decoder s", "rest s", "all s", "of dense", "least..most", "TFLOP")
    lines = ["".join([f"{'setting':<24}", *(f"{title:>13}" for title in columns), f"{'of dense':>10}"])]
    for name, row in rows.items():
        seconds = [f"{row[f'{part}_s']:>13.3f}" for part in ("built", "tower", "decoder", "rest", "deep")]
        spread = f"{row['least_share']:.1%}..{row['most_share']:.1%}"
        told = f"{row['share']:>13.1%}{spread:>13}{row['tflops']:>13.3f}{row['flops_share']:>10.1%}"
        lines.append(f"{name:<24}{row['tokens']:>13}{''.join(seconds)}{told}")
    return "\n".join(lines)


def verdict(rows: dict[str, dict]) -> str:
    """A sentence on which setting is fastest, and which has the fewest FLOPs, of those that give the decoder as many
    tokens as "ppe". One setting counts as faster than the next only if their rounds do not overlap."""
    equal = {name: row for name, row in rows.items() if row["tokens"] == rows[PPE]["tokens"]}
    least = min(equal, key=lambda name: equal[name]["flops_share"])
    best, second = sorted(equal, key=lambda name: equal[name]["share"])[:2]
    told = f"at {rows[PPE]['tokens']} visual tokens {least} has the fewest FLOPs, {equal[least]['flops_share']:.1%} of "
    told += f"dense's; {best} took the least time, {equal[best]['share']:.1%} of dense's, then {second}, "
    told += f"{equal[second]['share']:.1%}"
    apart = equal[best]["most_share"] < equal[second]["least_share"] and equal[best]["rounds"] >= ENOUGH
    told += "" if apart else f", but their rounds overlap, or are under {ENOUGH}: which is faster is not said"
    met = ("met" if equal[name][key] <= GOAL else "missed" for name, key in ((best, "share"), (least, "flops_share")))
    return f"{told}. The goal, {GOAL:.0%} of dense at most, is {next(met)} in time and {next(met)} in FLOPs."


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", help="cpu, cuda, npu or auto")
    parser.add_argument("--dtype", choices=DTYPES, help="dtype (default: bf16 on a device, fp32 on a CPU)")
    parser.add_argument("--sizes", nargs="+", choices=("tiny", "3b", "7b"), default=["3b", "7b"])
    parser.add_argument("--patches", type=int, default=4096, help="number of patches: the square of an even number")
    parser.add_argument("--layers", type=int, default=2, help="decoder layers to build")
    parser.add_argument("--rounds", type=int, default=3, help="total number of rounds, including those in the file")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    parser.add_argument("--output", type=output_file, help="JSON file for the numbers")
    args = parser.parse_args(argv)
    if args.rounds < 1 or args.layers < 1:
        raise InputError(f"--rounds {args.rounds} --layers {args.layers}: give 1 or more of each")
    device = devices.resolve(args.device)
    torch.set_num_threads(args.threads)
    dtype = args.dtype or ("fp32" if devices.on_cpu(device) else "bf16")
    facts = {"device": devices.describe(device), "dtype": dtype, "clock": clock_name(device)}
    facts |= {"patches": args.patches, "layers": args.layers}
    result = earlier(args.output, facts, "sizes")
    print(f"{facts['device']['name']}, {dtype}, {args.patches} patches, {facts['clock']}")
    save = functools.partial(write_json, args.output, result) if args.output else lambda: None
    for size in args.sizes:
        own = result["sizes"].setdefault(size, {"found": {}})
        found = measure(size, args.patches, args.layers, args.rounds, device, DTYPES[dtype], own["found"], save)
        rows = {name: row_of(each, found[DENSE]) for name, each in found.items()}
        own |= {"date": str(date.today()), "rows": rows, "verdict": verdict(rows)}
        built = f"{len(BLOCKS)} blocks for {sum(times for times, _ in BLOCKS)}, {args.layers} layers for "
        built += f"{SIZES[size][0]['num_hidden_layers']}, {len(found[DENSE]['passes'])} rounds"
        print(f"\n{size}, {built}\n{table(rows)}\n{size}: {verdict(rows)}", flush=True)
        save()


if __name__ == "__main__":
    try:
        main()
    except (InputError, devices.DeviceError) as error:
        sys.exit(f"error: {error}")
