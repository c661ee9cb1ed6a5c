"""Times every op in every implementation that the device can run, relative to the reference, a loop, and a limit.

One table: milliseconds (medians of rounds in which all implementations alternate), the speedup over the plain torch
reference and over the released code's loop over frames (if the op has one), and the fraction of the limit that is
reached: the limit is the least time in which the chip could do the op's counted FLOPs and bytes
(scripts/bench/counting.py) at the matrix-product and copy speeds measured in the same run. "step" is forward and
backward together. "device ms", on CUDA, is the GPU's own time with all launches queued beforehand and a cold cache: if
"ms" is larger, the GPU waits for the host; if it is smaller, the cache has helped. "none stored" is Triton's clustering
without a matrix of products in memory.

    python scripts/bench_ops.py [--device cpu] [--ops dpc_knn group_mean] [--rounds 5] [--output FOLDER/ops.json]
    python scripts/bench_ops.py --count 790e12 4.3e12      # only counts, for a chip's FLOP/s and bytes/s; runs nothing

The JSON is written after every case, and a plot of the same name beside it at the end.
"""

import argparse
import functools
import sys
from collections.abc import Callable
from datetime import date
from pathlib import Path
from unittest import mock

import torch
from bench import cases, peaks
from bench.cases import NEIGHBORS, Case
from bench.counting import WORK, Peaks, Work
from bench.plots import drawn, plot_ops
from bench.results import faults, output_file, reason
from bench.timing import Times, clock_name, interleaved

from ppe_npu import backends
from ppe_npu.backends import device as devices
from ppe_npu.backends import dispatch
from ppe_npu.backends.common import DTYPES
from ppe_npu.errors import InputError
from ppe_npu.files import write_json
from ppe_npu.methods.grouping import Grouping
from ppe_npu.methods.positions.entries import members

BEST, REFERENCE, LOOP, UNSTORED = "best", "reference", "released loop", "none stored"


def merge(tokens: torch.Tensor, budgets: torch.Tensor, most: int, implementation: str | None = None) -> tuple:
    """Clustering, means and the choice of positions, as in a stage of the engine; all ops with one implementation, or
    each with the device's best."""
    neighbors = torch.full_like(budgets, NEIGHBORS)
    centers, labels = backends.dpc_knn(tokens, None, budgets, most, neighbors, implementation=implementation)
    grouping = Grouping.from_centers(centers, labels, budgets, "raster")
    means = backends.group_mean(tokens, grouping.labels, grouping.counts, implementation=implementation)
    return means, members(grouping, cases.K, "nearest", tokens)


def values(case: Case, training: bool) -> list:
    """The arguments of a call; in training, those that are differentiated are leaves that require gradients."""
    out = list(case.arguments)
    for place in case.gradients if training else ():
        out[place] = out[place].detach().requires_grad_()
    return out


def implementations(case: Case, arguments: list, device: torch.device) -> tuple[list[str], dict[str, str]]:
    """(names of the implementations that can run the call here, best first; {other name: why it cannot})."""
    if case.op == "merge":
        return [BEST, REFERENCE], {}
    able, elsewhere, refused = [], {}, {}
    for entry in (entry for entry in dispatch.registry.REGISTRY if entry.op == case.op):
        if entry not in dispatch.candidates(case.op, device.type):
            elsewhere.setdefault(entry.name, []).extend(entry.devices)
            continue
        try:
            dispatch.select(case.op, *arguments, implementation=entry.name, **case.options)
            able.append(entry.name)
        except dispatch.ImplementationError as error:
            refused[entry.name] = str(error).partition("cannot be used: ")[2]
    not_measured = {name: f"needs {' or '.join(kinds)}" for name, kinds in elsewhere.items()} | refused
    return able, {name: reason for name, reason in not_measured.items() if name not in able}


def call(case: Case, arguments: list, name: str, training: bool) -> Callable[[], object]:
    """A function that makes the call, with its backward pass if `training`."""
    if case.op == "merge":
        return lambda: merge(*arguments, implementation=None if name == BEST else name)
    function = getattr(backends, case.op)
    if not training:
        return lambda: function(*arguments, **case.options, implementation=name)
    inputs = [arguments[place] for place in case.gradients]

    def step():
        out = function(*arguments, **case.options, implementation=name)
        outputs = out if isinstance(out, tuple) else (out,)
        torch.autograd.grad(outputs, inputs, outputs)

    return step


def products_made_again(clustering: Callable[[], object]) -> Callable[[], object]:
    """Triton's clustering as it runs for frames whose products are too large to store: each pass recomputes them."""
    from ppe_npu.backends.cuda import tiles

    def run():
        with mock.patch.object(tiles, "plan", functools.partial(tiles.plan, stored_at_once=0)):
            return clustering()

    return run


def measure(case: Case, training: bool, device: torch.device, rounds: int, chip: Peaks) -> dict:
    """The results of a case, for the forward pass or a step."""
    work: Work = WORK[case.op](*case.arguments, **case.options, training=training)
    with torch.set_grad_enabled(training):
        arguments = values(case, training)
        names, not_measured = implementations(case, arguments, device)
        functions = {name: call(case, arguments, name, training) for name in names}
        if case.loop is not None and not training:
            functions[LOOP] = case.loop
        if case.op == "dpc_knn" and "triton" in functions:
            functions[UNSTORED] = products_made_again(functions["triton"])
        best, failed = {}, {}
        for name in list(functions):
            dispatch.reset()
            try:
                functions[name]()
                best = best or dispatch.chosen()
            except Exception as error:
                not_measured[name] = failed[name] = reason(error)
                del functions[name]
        times = interleaved(functions, device, rounds)
    limit = work.seconds(chip) * 1e3
    return {
        **_case_facts(case, training, work),
        "limit_ms": limit,
        "best": best,
        "times": {name: _entry(name, times, limit) for name in times},
        "not_measured": not_measured,
        "failed": faults({name: why for name, why in failed.items() if name != LOOP}),  # the loop need not run on NPUs
    }


def _case_facts(case: Case, training: bool, work: Work) -> dict:
    facts = {"op": case.op, "shape": case.shape, "dtype": str(case.dtype).removeprefix("torch.")}
    return {**facts, "pass": "step" if training else "forward", "flops": work.flops, "bytes": work.bytes}


def _entry(name: str, times: dict[str, Times], limit: float) -> dict:
    mine = times[name]
    others = {"to_reference": REFERENCE, "to_loop": LOOP}
    ratios = {key: mine.ratio(times[other]) for key, other in others.items() if other in times}
    return {**mine.to_dict(), **ratios, "of_limit": limit / mine.median}


HEAD = f"{'op':<22}{'shape':<42}{'pass':<9}{'by':<16}{'ms':>10}{'device ms':>11}"
HEAD += f"{'x reference':>13}{'x loop':>9}{'of limit':>10}"


def lines(row: dict) -> list[str]:
    """The table's lines for one row, beginning with the limit."""
    start = f"{row['op']:<22}{row['shape']:<42}{row['pass']:<9}"
    out = [f"{start}{'(limit)':<16}{row['limit_ms']:>10.3f}"]
    for name, entry in row["times"].items():
        ratios = [f"{entry[key]:.2f}" if key in entry else "" for key in ("to_reference", "to_loop")]
        inside = f"{entry['device_ms']:.3f}" if "device_ms" in entry else ""
        out.append(
            f"{'':<73}{name:<16}{entry['ms']:>10.3f}{inside:>11}{ratios[0]:>13}{ratios[1]:>9}{entry['of_limit']:>10.1%}"
        )
    if row["op"] == "merge":
        out.append(f"{'':<73}best: {', '.join(f'{op} by {name}' for op, name in row['best'].items())}")
    if row["not_measured"]:
        reasons = (f"{name} ({why})" for name, why in row["not_measured"].items())
        out.append(f"{'':<73}not measured: {', '.join(reasons)}")
    return out


def count_alone(chip: Peaks) -> None:
    """Print the limits of the sizes "device" for a chip with these peaks, which need not be present."""
    print(f"{'op':<22}{'shape':<42}{'pass':<9}{'GFLOP':>12}{'MB':>10}{'limit ms':>12}")
    for op in cases.OPS:
        for make in cases.makers(op, "device", torch.device("meta"), torch.bfloat16):
            case = make()
            for training in (False, True)[: 2 if case.gradients else 1]:
                work = WORK[op](*case.arguments, **case.options, training=training)
                facts = _case_facts(case, training, work)
                numbers = f"{work.flops / 1e9:>12.2f}{work.bytes / 1e6:>10.1f}{work.seconds(chip) * 1e3:>12.4f}"
                print(f"{op:<22}{facts['shape']:<42}{facts['pass']:<9}{numbers}")


def parsed(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", help="cpu, cuda, npu or auto")
    parser.add_argument("--dtype", choices=DTYPES, help="dtype (default: bf16 on a device, fp32 on a CPU)")
    parser.add_argument("--ops", nargs="+", help=f"operators to time (default: {' '.join(cases.OPS)})")
    parser.add_argument("--sizes", choices=("tiny", "cpu", "device"), help="case sizes (default: by the device)")
    parser.add_argument("--rounds", type=int, default=5, help="how many times each is measured")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="CPU threads")
    parser.add_argument("--count", nargs=2, type=float, metavar=("FLOPS", "BANDWIDTH"), help="only count, run nothing")
    parser.add_argument("--output", type=output_file, help="JSON file for the numbers")
    args = parser.parse_args(argv)
    unknown = set(args.ops or ()) - set(cases.OPS)
    if unknown:
        raise InputError(f"ops {sorted(unknown)} are unknown: use some of {', '.join(cases.OPS)}")
    return args


def main(argv: list[str] | None = None) -> None:
    args = parsed(argv)
    if args.count:
        count_alone(Peaks({torch.bfloat16: args.count[0]}, args.count[1]))
        return
    device = devices.resolve(args.device)
    torch.set_num_threads(args.threads)
    on_cpu = devices.on_cpu(device)
    dtype = DTYPES[args.dtype] if args.dtype else torch.float32 if on_cpu else torch.bfloat16
    sizes = args.sizes or ("cpu" if on_cpu else "device")
    chip = peaks.measure(device, [dtype], args.rounds, peaks.TINY if sizes == "tiny" else None)
    facts = devices.describe(device)
    measured = {"flops_per_s": chip.flops[dtype], "bytes_per_s": chip.bandwidth}
    settings = {"clock": clock_name(device), "rounds": args.rounds, "sizes": sizes}
    result = {"date": str(date.today()), "device": facts, **settings, "peaks": measured, "rows": []}
    print(
        ", ".join(f"{key} {value}" for key, value in facts.items()),
        f"; medians of {args.rounds} rounds, {clock_name(device)}",
        sep="",
    )
    print(f"limit: {chip.flops[dtype] / 1e12:.3g} TFLOP/s {str(dtype)[6:]}, {chip.bandwidth / 1e9:.3g} GB/s\n{HEAD}")
    for op in args.ops or cases.OPS:
        for make in cases.makers(op, sizes, device, dtype):
            case = make()
            for training in (False, True)[: 2 if case.gradients else 1]:
                row = measure(case, training, device, args.rounds, chip)
                result["rows"].append(row)
                print("\n".join(lines(row)), flush=True)
                if args.output:
                    write_json(args.output, result)
    without = sorted(set(dispatch.ops()) - set(cases.OPS))
    if without:
        print(f"not measured: {', '.join(without)}: they have no case in scripts/bench/cases.py")
    if args.output:
        print(f"{args.output}, {drawn(plot_ops, result, Path(args.output).with_suffix('.png'))}")
    failed = [f"{row['op']} {row['shape']} by {fault}" for row in result["rows"] for fault in row["failed"]]
    if failed:
        sys.exit("error: failed: " + "; ".join(failed))


if __name__ == "__main__":
    try:
        main()
    except (InputError, devices.DeviceError) as error:
        sys.exit(f"error: {error}")
