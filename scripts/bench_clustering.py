"""Clustering against the one matrix product in it, on one machine in one run: milliseconds and ratios.

For frames of random fp32 tokens, three things take turns, round after round, so that a disturbance of the machine meets
all of them:

* gram: torch.bmm(x, x^T), what no such algorithm on a matrix unit can do without;
* dpc_knn: ppe_npu.backends.dpc_knn of all frames at once, centres and labels; "+ means" adds group_mean of its groups;
* loop: the operators of the released algorithm, frame by frame, its merging by weighted means among them.

Medians of all rounds with the fastest and slowest, and medians of each round's ratio to its Gram product; on a CPU also
of CPU time, which other people's jobs disturb less.

    python scripts/bench_clustering.py [--device cpu] [--rounds 9] [--threads 1] [--output bench.json]
"""

import argparse
import math
import statistics
import time
from collections.abc import Callable

import torch

from ppe_npu import backends
from ppe_npu.backends import device as devices
from ppe_npu.files import write_json

SHAPES = ((16, 256, 2048), (32, 196, 2048), (8, 1024, 2048), (1, 4096, 2048), (16, 128, 1024))  # frames, tokens, width
RATIO, NEIGHBORS = 0.45, 5


def gram(x: torch.Tensor) -> torch.Tensor:
    return torch.bmm(x, x.transpose(1, 2))


def clustered(x: torch.Tensor, budgets: torch.Tensor, most: int, neighbors: torch.Tensor) -> tuple:
    return backends.dpc_knn(x, None, budgets, most, neighbors)


def with_means(x: torch.Tensor, budgets: torch.Tensor, most: int, neighbors: torch.Tensor) -> torch.Tensor:
    _, labels = clustered(x, budgets, most, neighbors)
    counts = (labels[:, None, :] == torch.arange(most, device=x.device)[:, None]).sum(-1)
    return backends.group_mean(x, labels, counts)


def frame_by_frame(x: torch.Tensor, budget: int, neighbors: int) -> torch.Tensor:
    return torch.cat([released(frame[None], budget, neighbors) for frame in x])


def released(x: torch.Tensor, budget: int, neighbors: int) -> torch.Tensor:
    """The released operators on one frame [1, N, C], noise on the densities and weights of one among them."""
    _, count, channels = x.shape
    distance = torch.cdist(x.float(), x.float()) / channels**0.5
    nearest = torch.topk(distance, k=neighbors, dim=-1, largest=False).values
    density = (-(nearest**2).mean(dim=-1)).exp()
    density = density + torch.rand_like(density) * 1e-6
    denser = (density[:, None, :] > density[:, :, None]).to(x.dtype)
    farthest = distance.flatten(1).max(dim=-1).values[:, None, None]
    delta = (distance * denser + farthest * (1 - denser)).min(dim=-1).values
    centers = torch.topk(delta * density, k=budget, dim=-1).indices[0]
    labels = distance[0, centers].argmin(dim=0)
    labels[centers] = torch.arange(budget, device=x.device)
    weights = x.new_ones(count, 1)
    share = weights / (x.new_zeros(budget, 1).index_add_(0, labels, weights) + 1e-6)[labels]
    return x.new_zeros(budget, channels).index_add_(0, labels, x[0] * share)[None]


def contenders(shape: tuple[int, int, int], device: torch.device) -> dict[str, Callable[[], object]]:
    frames, count, _ = shape
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(device)
    budget = math.ceil(count * RATIO)
    budgets, neighbors = (torch.full((frames,), value, device=device) for value in (budget, NEIGHBORS))
    return {
        "gram": lambda: gram(x),
        "dpc_knn": lambda: clustered(x, budgets, budget, neighbors),
        "+ means": lambda: with_means(x, budgets, budget, neighbors),
        "loop": lambda: frame_by_frame(x, budget, NEIGHBORS),
    }


@torch.no_grad()
def measure(shape: tuple[int, int, int], device: torch.device, rounds: int) -> dict:
    """Milliseconds of every contender and its ratios to the Gram product of the same round."""
    functions = contenders(shape, device)
    wall, cpu = ({name: [] for name in functions} for _ in range(2))
    for number in range(rounds + 1):
        for name, function in functions.items():
            devices.synchronize(device)
            start = time.perf_counter(), time.process_time()
            function()
            devices.synchronize(device)
            if number:  # the first round warms up
                wall[name].append((time.perf_counter() - start[0]) * 1e3)
                cpu[name].append((time.process_time() - start[1]) * 1e3)
    return {"shape": list(shape), **{name: summary(wall, cpu, name) for name in functions}}


def summary(wall: dict[str, list[float]], cpu: dict[str, list[float]], name: str) -> dict[str, float]:
    def ratio(times: dict[str, list[float]]) -> float:
        return statistics.median(mine / base for mine, base in zip(times[name], times["gram"]))

    return {
        "milliseconds": statistics.median(wall[name]),
        "fastest": min(wall[name]),
        "slowest": max(wall[name]),
        "to_gram": ratio(wall),
        "cpu_milliseconds": statistics.median(cpu[name]),
        "cpu_to_gram": ratio(cpu),
    }


def line(row: dict, on_cpu: bool) -> str:
    cells = ["x".join(map(str, row["shape"])).rjust(12)]
    for name in ("gram", "dpc_knn", "+ means", "loop"):
        value = row[name]
        text = f"{value['milliseconds']:.1f} ({value['fastest']:.1f}..{value['slowest']:.1f})"
        if name != "gram":
            text += f" {value['to_gram']:.2f}x" + (f", cpu {value['cpu_to_gram']:.2f}x" if on_cpu else "")
        cells.append(text.rjust(24 if name == "gram" else 42 if on_cpu else 32))
    return " ".join(cells)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", help="cpu, cuda, npu or auto")
    parser.add_argument("--rounds", type=int, default=9, help="times that each is measured")
    parser.add_argument("--threads", type=int, default=1, help="of a CPU")
    parser.add_argument("--output", help="a JSON file for the numbers")
    args = parser.parse_args()
    device = devices.resolve(args.device)
    torch.set_num_threads(args.threads)
    on_cpu = device.type == "cpu"
    facts = devices.describe(device)
    print(", ".join(f"{key} {value}" for key, value in facts.items()) + f"; {args.rounds} rounds, milliseconds")
    widths = (24, 42, 42, 42) if on_cpu else (24, 32, 32, 32)
    print(
        " ".join(
            ["shape".rjust(12), *(name.rjust(w) for name, w in zip(("gram", "dpc_knn", "+ means", "loop"), widths))]
        )
    )
    rows = []
    with devices.exact_matmul():  # as dpc_knn computes, so that the product is the same one
        for shape in SHAPES:
            rows.append(measure(shape, device, args.rounds))
            print(line(rows[-1], on_cpu), flush=True)
    if args.output:
        settings = {"threads": args.threads, "rounds": args.rounds, "ratio": RATIO, "neighbors": NEIGHBORS}
        write_json(args.output, {"device": facts, **settings, "rows": rows})


if __name__ == "__main__":
    main()
