"""`ppe-npu demo --motion`: trains a tiny Qwen2.5-VL, frame by frame and with PVC's modules, on clips of a board.

Both models start from the same weights of a seed, see the same clips in the same order for the same number of steps at
the same learning rates, and get the same number of tokens per frame, 1 or (--tokens) 64. They differ only in PVC's
modules. A killed run resumes where it stopped.
"""

from __future__ import annotations

import argparse
import os
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ppe_npu.backends import device as devices
from ppe_npu.demo import clips, tiny
from ppe_npu.demo.running import draw_once, set_up_process, train_once, worker_pool
from ppe_npu.errors import InputError, counted
from ppe_npu.files import new_folder, write_json, write_text
from ppe_npu.models.pvc.config import PVCConfig
from ppe_npu.utils.reading import json_or_none

if TYPE_CHECKING:
    import torch

SPLITS = {"train": (2_000, 1), "test": (256, 2)}  # clips, and the seed that they are drawn with
PVC = {"pvc": PVCConfig(blocks=2, time_width=64)}
FRAMEWISE = "frame by frame"
NAMES = (FRAMEWISE, "PVC")
KINDS = (*clips.QUESTION_TYPES, "all")


@dataclass(frozen=True)
class Shown:
    """The size at which a board is shown (pixels along one side of a square, patches along one side of a token), and
    the number of steps for which models are trained on it."""

    square: int
    merge: int
    steps: int

    @property
    def name(self) -> str:
        """The name of the clips, and of the folder of a seed's untrained model."""
        return clips.TASK if self.tokens == 1 else f"{clips.TASK}-{self.tokens}"

    @property
    def side(self) -> int:
        """Pixels along one side of a frame."""
        return clips.SQUARES * self.square

    @property
    def patches(self) -> int:
        """Patches along one side of a frame."""
        return self.side // tiny.PATCH

    @property
    def across(self) -> int:
        """Tokens along one side of a frame."""
        return self.patches // self.merge

    @property
    def tokens(self) -> int:
        """Tokens of a frame."""
        return self.across**2


SMALL, LARGE = Shown(square=4, merge=4, steps=600), Shown(square=16, merge=2, steps=200)
SHOWN = {shown.tokens: shown for shown in (SMALL, LARGE)}


@dataclass(frozen=True)
class MotionRecipe:
    """The training settings of both models, named as in TrainConfig. All parts are trained from random weights."""

    max_steps: int = SMALL.steps
    batch_size: int = 32
    learning_rate: float = 2e-3
    warmup_steps: int = 40
    schedule: str = "constant"  # with a decayed rate, models do not learn what they learn late
    betas: tuple[float, float] = (0.9, 0.98)
    logging_steps: int = 100
    save_steps: int = 20


@dataclass(frozen=True)
class MotionJob:
    """One model of one seed; everything that a worker process needs."""

    output: str
    name: str
    seed: int
    device: str
    recipe: MotionRecipe
    shown: Shown


RECIPE = MotionRecipe()
_BATCH, _NEW_TOKENS = 128, 4  # for answering; new tokens are the restated question, the word, and the end of the turn


def main(args: argparse.Namespace) -> int:
    """Run the comparison and write <output>/report.md."""
    output, started = Path(args.output), time.perf_counter()
    device = devices.resolve(args.device)
    set_up_process(None)
    shown = SHOWN[args.tokens or SMALL.tokens]
    make_data(output / "data", shown)
    for seed in range(args.seeds):
        start = output / f"seed{seed}" / shown.name
        if not (start / "config.json").is_file():
            build(start, seed, shown)
    recipe = replace(RECIPE, max_steps=shown.steps)
    jobs = [
        MotionJob(str(output), name, seed, device.type, recipe, shown) for seed in range(args.seeds) for name in NAMES
    ]
    # One process per core, of one thread each, as in pipeline.py.
    workers = min(os.cpu_count() or 1, len(jobs)) if devices.on_cpu(device) else 1
    with worker_pool(workers) as pool:
        results = list(pool.map(run, jobs))
    write_json(output / "results.json", results)
    minutes = (time.perf_counter() - started) / 60
    command = f"ppe-npu demo --motion --tokens {shown.tokens} --seeds {args.seeds}"
    spent = f"Made by `{command}` in {minutes:.0f} minutes (without what an interrupted run had finished before)."
    text = f"{table(results)}\n{findings(results)}"
    write_text(output / "report.md", f"# Motion: PVC and frame by frame\n\n{text}\n{spent}\n")
    print(f"{text}\nwritten to {output / 'report.md'}")
    return 0


def make_data(folder: Path, shown: Shown) -> None:
    """Draw the splits unless they exist with the same numbers; raises InputError if the folder has other frames."""
    held = json_or_none(folder / "train.recipe.json")
    if isinstance(held, list) and held and held[-1] != shown.name:
        raise InputError(f"{folder} holds clips of {held[-1]}, not of {shown.name}: name another folder as output")

    def write(at: Path, name: str, count: int, seed: int, _: str) -> None:
        clips.write_split(at, name, count, seed, shown.square)

    for name, asked in SPLITS.items():
        draw_once(folder, name, (*asked, shown.name), "clips", write)


def build(folder: Path, seed: int, shown: Shown) -> None:
    """A model with weights drawn from the seed, and its processor for frames of this size."""
    vocabulary = tiny.vocabulary_of(clips.WORDS)
    vision: dict[str, Any] = {"depth": 2, "tokens_per_second": clips.RATE}
    vision |= {"temporal_patch_size": 1, "spatial_merge_size": shown.merge}  # every frame is a time step
    with new_folder(folder) as start:
        tiny.build_model(seed, vocabulary, **vision).save_pretrained(start)
        processor = tiny.build_processor(vocabulary, shown.side, temporal_patch_size=1, merge_size=shown.merge)
        processor.save_pretrained(start)


def run(job: MotionJob) -> dict[str, Any]:
    """Train and evaluate one model of one seed; returns the runner's scores, the seed and the settings."""
    from ppe_npu.checkpoints.loading import load_model, load_processor
    from ppe_npu.config import CompressionConfig
    from ppe_npu.evaluation import benchmarks
    from ppe_npu.evaluation.runner import evaluate
    from ppe_npu.models import compress

    on_cpu = devices.on_cpu(devices.resolve(job.device))
    set_up_process(1 if on_cpu else None)
    output, root = Path(job.output), Path(job.output) / f"seed{job.seed}"
    folder = root / job.name.lower().replace(" ", "-")
    more = {} if job.name == FRAMEWISE else PVC
    data = output / "data" / "train.jsonl"
    train_once(job.recipe, root / job.shown.name, data, folder, "dense", job.seed, job.device, **more)
    model = compress(load_model(folder / "final", devices.resolve(job.device)), CompressionConfig.preset("dense"))
    benchmark = benchmarks.load("motion", output / "data" / "test.jsonl")
    limits = {"batch_size": _BATCH, "max_new_tokens": _NEW_TOKENS}
    found = evaluate(model, load_processor(folder / "final"), benchmark, folder / "eval", name=job.name, **limits)
    told = squares_told(root / job.shown.name, job.shown)
    asked = {"tokens": job.shown.tokens, "steps": job.recipe.max_steps, "clips": job.recipe.batch_size}
    scores = {"types": found["types"], "accuracy": found["accuracy"]}
    return {"name": job.name, "seed": job.seed, **scores, "told": told, **asked}


def squares_told(folder: Path, shown: Shown, boards: int | None = None) -> float:
    """The fraction of squares that a linear layer reads correctly from the token that shows them, on a fifth of random
    boards after a fit on the others. It says whether an untrained model sees what it has to compare."""
    import torch

    from ppe_npu.checkpoints.loading import load_model

    boards = boards or max(200, 32_000 // shown.patches**2)
    drawn = np.random.default_rng(3).integers(0, 2, (boards, clips.SQUARES, clips.SQUARES))
    squares = torch.from_numpy(2.0 * drawn - 1).float()  # as the processor scales dark and light
    pixels = squares.repeat_interleave(shown.square, 1).repeat_interleave(shown.square, 2)
    places = _blocks(pixels[:, :: tiny.PATCH, :: tiny.PATCH], shown.across)  # [boards, tokens, patches]
    patches = places.reshape(-1, 1).repeat(1, 3 * tiny.PATCH**2)
    visual = load_model(folder, torch.device("cpu")).model.visual
    with torch.no_grad():
        found = visual(patches, torch.tensor([[boards, shown.patches, shown.patches]]))
    tokens = getattr(found, "pooler_output", found).double().unflatten(0, (boards, -1))
    # A token that shows all squares, or the first of the tokens that show the same one.
    parts = min(shown.across, clips.SQUARES)
    tokens = _blocks(tokens.unflatten(1, (-1, shown.across)), parts)[:, :, 0]
    tokens = torch.cat([tokens, torch.ones(*tokens.shape[:2], 1)], 2)
    squares, fitted = _blocks(squares, parts).double(), boards * 4 // 5
    layer = torch.linalg.lstsq(tokens[:fitted].flatten(0, 1), squares[:fitted].flatten(0, 1)).solution
    return float((tokens[fitted:] @ layer * squares[fitted:] > 0).double().mean())


def _blocks(rows: torch.Tensor, parts: int) -> torch.Tensor:
    """[B, n, n, ...] cut into parts x parts blocks, row by row: [B, parts ** 2, (n / parts) ** 2, ...]."""
    cut = rows.unflatten(1, (parts, -1)).unflatten(3, (parts, -1)).transpose(2, 3)
    return cut.flatten(1, 2).flatten(2, 3)


def table(results: list[dict[str, Any]]) -> str:
    """A table of both models' accuracy for each seed and question type, with 95 % intervals."""
    lines = [f"| seed | model | {' | '.join(clips.QUESTION_TYPES)} | all |", "|---|---|" + "---|" * 4]
    for found in results:
        cells = [_cell(_of(found, kind)) for kind in KINDS]
        lines.append(f"| {found['seed']} | {found['name']} | {' | '.join(cells)} |")
    chance = [f"{_chance(results[0], kind):.3f}" for kind in KINDS]
    return "\n".join([*lines, f"| chance | | {' | '.join(chance)} |"]) + "\n"


def findings(results: list[dict[str, Any]]) -> str:
    """The results in words: which model is ahead, and which models have learned anything."""
    seeds, one = len({found["seed"] for found in results}), results[0]
    ahead, _ = _compared(results, "all")
    verdict = "PVC is clearly ahead" if ahead == seeds else "PVC is not clearly ahead"
    lines = [f"**{verdict} on every seed** (on {ahead} of {seeds}, over all questions).", ""]
    lines += [_verdict(results, kind) for kind in KINDS]
    learned = ((name, [found for found in results if found["name"] == name]) for name in NAMES)
    lines += ["", " ".join(_learned(name, own) for name, own in learned), ""]
    lines += [
        f"Accuracy in [0, 1] over {SPLITS['test'][0]} unseen clips, with 95 % Wilson intervals. Clearly: the intervals "
        f"of a seed do not overlap. {counted(one['tokens'], 'token')} per frame, {clips.FRAMES} frames per clip, "
        f"{one['steps']:,} steps of {one['clips']} clips. Before any training, a linear layer reads at least "
        f"{min(found['told'] for found in results):.1%} of the squares of unseen boards from the tokens that show them."
    ]
    return "\n".join(lines) + "\n"


def _of(found: dict[str, Any], kind: str) -> dict[str, Any]:
    return found["accuracy"] if kind == "all" else found["types"][kind]


def _chance(found: dict[str, Any], kind: str) -> float:
    """Chance accuracy on a question type, or on all questions of a result, weighted by how often each was asked."""
    counts = {name: found["types"][name]["count"] for name in clips.QUESTION_TYPES}
    kinds = counts if kind == "all" else {kind: 1}
    return sum(number * clips.CHANCE[name] for name, number in kinds.items()) / sum(kinds.values())


def _cell(found: dict[str, Any]) -> str:
    return f"{found['accuracy']:.3f} ({found['low']:.3f}–{found['high']:.3f})"


def _pairs(results: list[dict[str, Any]], kind: str) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """(PVC's numbers, the frame-by-frame model's numbers) for each seed."""
    of = {(found["name"], found["seed"]): _of(found, kind) for found in results}
    return [(of["PVC", seed], of[FRAMEWISE, seed]) for seed in sorted({seed for _, seed in of})]


def _compared(results: list[dict[str, Any]], kind: str) -> tuple[int, int]:
    """(number of seeds on which PVC is clearly ahead, number on which it is clearly behind)."""
    pairs = _pairs(results, kind)
    ahead = sum(pvc["low"] > plain["high"] for pvc, plain in pairs)
    return ahead, sum(pvc["high"] < plain["low"] for pvc, plain in pairs)


def _verdict(results: list[dict[str, Any]], kind: str) -> str:
    pairs, (ahead, behind) = _pairs(results, kind), _compared(results, kind)
    gains = ", ".join(f"{pvc['accuracy'] - plain['accuracy']:+.3f}" for pvc, plain in pairs)
    clearly = f"clearly ahead on {ahead} of {len(pairs)} seeds, clearly behind on {behind}"
    return f"* {kind}: PVC minus frame by frame {gains}; {clearly}."


def _learned(name: str, own: list[dict[str, Any]]) -> str:
    """A sentence with the number of seeds on which a model's interval is above chance, by question type."""
    above = (f"{kind} {sum(_of(f, kind)['low'] > _chance(f, kind) for f in own)}" for kind in KINDS)
    return f"Number of seeds, out of {len(own)}, on which {name} is above chance: {', '.join(above)}."
