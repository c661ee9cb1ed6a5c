"""A training step with and without compression: time, memory and FLOPs, with the vision tower frozen and trained.

Qwen2.5-VL at its real widths, with random weights: a tower of two blocks, one of which attends to the whole picture, a
decoder of two layers (the 3B has 32 blocks and 36 layers, the 7B 32 and 28), a drawn page as the picture, and 66 tokens
of text, which are the labels. A step is the forward pass, the loss, the backward pass and AdamW. Memory is the peak of
a step, computed from all of torch's allocations, beyond weights, gradients and optimizer state, which compression
cannot reduce.

torch counts the FLOPs as the step runs. FLOPs of the whole depth follow from the forward pass of a block and a layer:
three times that if weights are trained, once if not. --checkpointing runs each decoder layer's forward pass once more.

    python scripts/bench_training.py [--size 3b] [--patches 2304] [--rounds 3] [--dtype bf16] [--output FILE]
    python scripts/bench_training.py --formula --patches 4096      # shares of 3B and 7B by formula; runs nothing
"""

import argparse
import statistics
import sys
from datetime import date

import torch
from bench.decoder import peak_mib
from bench.models import SIZES, config_of
from bench.results import output_file
from bench.shares import Widths
from bench.timing import stopwatch
from bench_first_token import counted, model_of, page

from ppe_npu import CompressionConfig, compress, restore
from ppe_npu.backends.common import DTYPES, IGNORED
from ppe_npu.errors import InputError
from ppe_npu.files import write_json
from ppe_npu.inspect.flops import flop_counter
from ppe_npu.methods import DPCKNN, PixelPrune
from ppe_npu.models.forward_pass import ForwardPass

RATIO, TIME_GOAL, MEMORY_GOAL, DENSE, LAYERS = 0.45, 0.40, 0.50, "dense", 2
KINDS = ((28, False), (4, True))  # kinds of the tower's blocks, as in bench_first_token.BLOCKS


def settings(tokens: int) -> dict[str, CompressionConfig]:
    """The settings that are compared on a picture of `tokens` tokens; all but "dense" keep equally many tokens."""
    few = DPCKNN(RATIO).kept(tokens)
    more = round((few * tokens) ** 0.5)
    steps = {
        "ppe": [DPCKNN(RATIO)],
        "pixelprune + ppe": [PixelPrune(max_kept=more, fill=True), DPCKNN((few - 0.5) / more)],
        "pixelprune": [PixelPrune(max_kept=few, fill=True)],
    }
    made = {name: CompressionConfig(steps=own, positions="ppe", k=8) for name, own in steps.items()}
    return {DENSE: CompressionConfig.preset("dense"), **made}


class Step:
    """A training step of one model.

    Args:
        frozen: whether the vision tower is frozen. checkpointing: use gradient checkpointing in the decoder.
    """

    def __init__(self, model, inputs: dict, frozen: bool, checkpointing: bool):
        self.model, self.inputs, self.frozen = model, inputs, frozen
        self.decoder_passes = 4 if checkpointing else 3  # a backward pass costs as much as two forward passes
        model.train()
        model.requires_grad_(True).model.visual.requires_grad_(not frozen)
        if checkpointing:
            model.model.language_model.gradient_checkpointing_enable({"use_reentrant": False})
        placeholder = inputs["input_ids"] == model.config.image_token_id
        self.labels = inputs["input_ids"].masked_fill(placeholder, IGNORED)
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        # A learning rate of 0 costs the same as any other, and leaves the weights unchanged for the next setting.
        self.optimizer = torch.optim.AdamW(trained, lr=0.0, weight_decay=0.0, fused=True)
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
        self.optimizer.step()  # allocates the optimizer state, so that it is not part of a step's memory

    def run(self) -> None:
        loss = self.model(**self.inputs, labels=self.labels, use_cache=False, ppe=ForwardPass(skip_logits=True)).loss
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=False)  # gradients stay allocated, outside a step's memory

    def counted(self, depth: int) -> dict[str, float]:
        """FLOPs of a step ("step"); FLOPs of a step at the checkpoint's depth, in blocks and layers only ("deep"); and
        the peak MiB of a step ("peak_mib")."""
        with torch.no_grad():
            forward = counted(self.model, self.inputs, depth, KINDS)
        with flop_counter() as counter:
            peak = peak_mib(self.run)
        tower, decoder = forward["tower"] * (1 if self.frozen else 3), forward["decoder"] * self.decoder_passes
        return {"step": counter.get_total_flops(), "deep": tower + decoder, "peak_mib": peak}


def measure(model, size: str, patches: int, rounds: int, frozen: bool, checkpointing: bool) -> dict[str, dict]:
    """Rows by setting. The first round counts FLOPs and memory and is the warm-up; it is not timed."""
    inputs = page(model, patches)
    step = Step(model, inputs, frozen, checkpointing)
    configs = settings(int((inputs["input_ids"] == model.config.image_token_id).sum()))
    counts, times = {}, {name: [] for name in configs}
    for number in range(rounds + 1):
        for name, config in configs.items():
            compress(restore(model), config)
            if number:
                times[name].append(stopwatch(step.run, torch.device("cpu")))
            else:
                counts[name] = step.counted(SIZES[size][0]["num_hidden_layers"])
    dense, rows = counts[DENSE], {}
    for name, own in counts.items():
        shares = [mine / theirs for mine, theirs in zip(times[name], times[DENSE])]
        rows[name] = {
            "seconds": statistics.median(times[name]) / 1e3,
            "share": statistics.median(shares),
            "least_share": min(shares),
            "most_share": max(shares),
            "flops_share": own["step"] / dense["step"],
            "deep_tflops": own["deep"] / 1e12,
            "deep_share": own["deep"] / dense["deep"],
            "peak_mib": own["peak_mib"],
            "peak_share": own["peak_mib"] / dense["peak_mib"],
        }
    return rows


def by_formula(size: str, patches: int, text: int = 66) -> dict[str, tuple[float, float]]:
    """{setting: (tower frozen, tower trained)} FLOPs of a step at the whole depth, relative to dense. Attention counts
    all pairs, even those that a causal mask excludes, and dropped cells are spread evenly over the picture."""
    widths, cell = Widths(config_of(size)), 4
    tokens = patches // cell

    def parts(config: CompressionConfig) -> tuple[int, int]:
        """(tower, decoder) of a forward pass."""
        seen = tokens if config.at_pixels is None else config.at_pixels.kept(tokens)
        left = tokens
        for method in config.methods:
            left = method.kept(left)
        left += text
        return widths.tower(patches, cell * seen), left * widths.layers + widths.pairs(left**2)

    found = {name: parts(config) for name, config in settings(tokens).items()}
    steps = {name: [times * tower + 3 * decoder for times in (1, 3)] for name, (tower, decoder) in found.items()}
    return {name: tuple(own / dense for own, dense in zip(step, steps[DENSE])) for name, step in steps.items()}


def formula_table(patches: int) -> str:
    sizes = {size: by_formula(size, patches) for size in ("3b", "7b")}
    titles = "".join(f"{f'{size}, {tower}':>13}" for size in sizes for tower in ("frozen", "trained"))
    lines = [f"{f'{patches} patches':<26}{titles}"]
    for name in sizes["3b"]:
        lines.append(f"{name:<26}" + "".join(f"{share:>13.1%}" for own in sizes.values() for share in own[name]))
    return "\n".join(lines)


def table(title: str, rows: dict[str, dict]) -> str:
    columns = ("s", "of dense", "least..most", "FLOPs", "whole: TFLOP", "of dense", "peak MiB", "of dense")
    lines = ["".join([f"{title:<26}", *(f"{column:>13}" for column in columns)])]
    for name, row in rows.items():
        spread = f"{row['least_share']:.1%}..{row['most_share']:.1%}"
        told = f"{row['seconds']:>13.2f}{row['share']:>13.1%}{spread:>13}{row['flops_share']:>13.1%}"
        deep_told = f"{row['deep_tflops']:>13.2f}{row['deep_share']:>13.1%}"
        lines.append(f"{name:<26}{told}{deep_told}{row['peak_mib']:>13.0f}{row['peak_share']:>13.1%}")
    return "\n".join(lines)


def verdict(rows: dict[str, dict]) -> str:
    """The goals that each setting meets or misses, in words."""
    said = []
    for name, row in rows.items():
        if name != DENSE:
            time = "met" if row["share"] <= TIME_GOAL else f"missed by {row['share'] - TIME_GOAL:.1%} of dense"
            memory = "met" if row["peak_share"] <= MEMORY_GOAL else f"missed by {row['peak_share'] - MEMORY_GOAL:.1%}"
            said.append(f"{name}: time ({TIME_GOAL:.0%}) {time}, memory ({MEMORY_GOAL:.0%}) {memory}")
    return "; ".join(said)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=("tiny", "3b", "7b"), default="3b")
    parser.add_argument("--patches", type=int, default=2304, help="number of patches: the square of an even number")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dtype", choices=DTYPES, default="fp32")
    parser.add_argument("--checkpointing", action="store_true", help="use gradient checkpointing in the decoder")
    parser.add_argument("--formula", action="store_true", help="only count the steps of 3B and 7B, by formula")
    parser.add_argument("--output", type=output_file, help="JSON file for the numbers")
    args = parser.parse_args(argv)
    if args.rounds < 1:
        raise InputError(f"--rounds {args.rounds}: give 1 or more")
    if args.formula and args.output:
        raise InputError("--output with --formula: a formula's shares are printed alone; leave one")
    if args.formula:
        print(formula_table(args.patches))
        return
    torch.set_num_threads(1)
    result = {name: getattr(args, name) for name in ("size", "patches", "rounds", "dtype", "checkpointing")}
    result |= {"date": str(date.today()), "rows": {}}
    model = model_of(args.size, LAYERS, torch.device("cpu"), DTYPES[args.dtype], KINDS)
    for frozen in (True, False):
        title = f"tower {'frozen' if frozen else 'trained'}"
        rows = measure(model, args.size, args.patches, args.rounds, frozen, args.checkpointing)
        result["rows"][title] = {"settings": rows, "verdict": verdict(rows)}
        print(f"{table(title, rows)}\n{title}. {verdict(rows)}\n", flush=True)
        if args.output:
            write_json(args.output, result)


if __name__ == "__main__":
    try:
        main()
    except InputError as error:
        sys.exit(f"error: {error}")
