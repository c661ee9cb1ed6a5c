"""The whole merge of a frame's tokens (clustering, means, K positions), compared with the released code's operators.

All contenders alternate in one process, on one thread; times are medians of its CPU time. "released" is
scripts/bench/released_loop.py, which has a single rule of members; "gram" is the product of all pairs of tokens, which
every merge needs; each rule of members is timed with this package's merge, as in engine/merge.py ("nearest" is the
default of presets, "spread" needs no distances); "reference" is the first of these rules with the clustering and the
means of backends/reference. Tokens are normally distributed; --offset adds a constant to them, as real features have.

    python scripts/bench_merge.py [--rounds 5] [--members nearest spread] [--offset 0] [--output merge.json]
"""

import argparse
import functools
import statistics
from collections.abc import Callable

import torch
from bench import released_loop
from bench.cases import NEIGHBORS, RATIO, K
from bench.counting import groups
from bench.results import output_file
from bench.timing import thread_ms

from ppe_npu.backends import dispatch
from ppe_npu.config import MEMBERS
from ppe_npu.files import write_json
from ppe_npu.methods import DPCKNN
from ppe_npu.methods.positions.entries import members
from ppe_npu.methods.view import View

SHAPES = ((16, 256, 2048), (32, 196, 2048), (8, 1024, 2048), (1, 4096, 2048))
RELEASED, GRAM, REFERENCE = OTHERS = ("released", "gram", "reference")


def ours(x: torch.Tensor, budget: int, rows: torch.Tensor, rule: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Merged tokens [F, M, C] and positions [F, 3, M, K] of frames [F, N, C] with positions [F, 3, N]."""
    view = View(torch.full((len(x),), budget), budget, x, least=budget)
    grouping = DPCKNN(RATIO).group(view)
    held = members(grouping, K, rule, x)
    index = held.flatten(1)[:, None].expand(-1, 3, -1)
    return grouping.apply(x), rows.gather(2, index).unflatten(2, held.shape[1:])


def by_reference(call: Callable[[], object]) -> object:
    with dispatch.using(dpc_knn="reference", group_mean="reference"):
        return call()


@torch.no_grad()
def measure(shape: tuple[int, int, int], rounds: int, rules: list[str], offset: float) -> dict:
    """One row: milliseconds of each contender, and the ratios of each rule to the others, all medians over rounds."""
    frames, tokens, _ = shape
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0)) + offset
    rows = torch.arange(tokens).expand(frames, 3, -1).contiguous()
    budget, products = groups(tokens, RATIO), torch.empty(frames, tokens, tokens)
    own = {rule: functools.partial(ours, x, budget, rows, rule) for rule in rules}
    calls = {
        RELEASED: lambda: released_loop.merge(x, rows, budget, NEIGHBORS, K),
        GRAM: lambda: torch.bmm(x, x.mT, out=products),
        REFERENCE: lambda: by_reference(own[rules[0]]),
        **own,
    }
    for call in calls.values():
        call()
    times = [{name: thread_ms(call) for name, call in calls.items()} for _ in range(rounds)]
    ratios = {
        rule: {other: statistics.median(one[rule] / one[other] for one in times) for other in OTHERS} for rule in own
    }
    return {
        "shape": list(shape),
        "ms": {name: statistics.median(one[name] for one in times) for name in calls},
        "of": ratios,
    }


def line(row: dict, rules: list[str]) -> str:
    """A line of the table: milliseconds, then the ratio of each rule to each of the others."""
    numbers = [f"{row['ms'][name]:>14.1f}" for name in (*OTHERS, *rules)]
    numbers += [f"{row['of'][rule][other]:>22.2f}" for rule in rules for other in OTHERS]
    return "".join([f"{'x'.join(map(str, row['shape'])):<20}", *numbers])


def main(argv: list[str] | None = None) -> list[dict]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--members", nargs="+", choices=MEMBERS, default=["nearest", "spread"])
    parser.add_argument("--offset", type=float, default=0.0)
    parser.add_argument("--shapes", nargs="+", metavar="F,N,C", help="shapes (default: the four of docs/speed.md)")
    parser.add_argument("--output", type=output_file, help="JSON file for the numbers")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    shapes = [tuple(int(part) for part in shape.split(",")) for shape in args.shapes] if args.shapes else SHAPES
    titles = [f"{name + ' ms':>14}" for name in (*OTHERS, *args.members)]
    titles += [f"{f'{rule} / {other}':>22}" for rule in args.members for other in OTHERS]
    print("".join([f"{'shape':<20}", *titles]))
    rows = []
    for shape in shapes:
        rows.append(measure(shape, args.rounds, args.members, args.offset))
        print(line(rows[-1], args.members), flush=True)
    if args.output:
        write_json(args.output, {"members": args.members, "offset": args.offset, "rounds": args.rounds, "rows": rows})
    return rows


if __name__ == "__main__":
    main()
