"""Compares the rules of positions (ppe_npu/methods/positions) with each other and with one position, on a demo's task.

    python scripts/study_positions.py --output runs/positions

trains one dense model per seed, then asks each model the same questions with every rule at every share of the tokens,
without further training. --tune nearest spread also fine-tunes with these rules, at each of --tune-shares; --distill
trains with a rule on the dense model's outputs; --counted lists the rules that are also run with the sizes counted.
--methods tome divprune (or all) also runs every rule on the groups of these methods, without training, at
--methods-shares. --task motion asks about clips. --page docs/positions.md writes the results into that page at the end.
A run that was stopped resumes where it was: finished parts are in the output folder.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import shlex
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import torch
from study_positions_page import COUNTED as SIZES
from study_positions_page import REFERENCE, measured, put
from study_positions_tasks import TASKS, Task, tuned

from ppe_npu.backends import device as devices
from ppe_npu.checkpoints.loading import load_model, load_processor
from ppe_npu.config import CompressionConfig
from ppe_npu.demo import methods
from ppe_npu.demo.recipe import EVAL, K
from ppe_npu.demo.running import set_up_process, stamp
from ppe_npu.evaluation import benchmarks
from ppe_npu.evaluation.answers import ModelAnswers
from ppe_npu.evaluation.results import score
from ppe_npu.files import write_json, write_text
from ppe_npu.methods.dpc_knn import DPCKNN
from ppe_npu.methods.grouping import Grouping
from ppe_npu.methods.positions import rule_names
from ppe_npu.methods.view import View
from ppe_npu.models import compress

SHARES = (0.25, 0.5, 0.1)  # in the order in which they are run
BATCH = 192
SIZES_COUNTED = {"proportional_attention": True}
COUNTED = ("nearest", "spread", "quantiles", "mean_rotation")  # the rules that are also run with the sizes counted


@dataclass(frozen=True)
class RepresentativesAlone(DPCKNN):
    """DPC-KNN whose groups have their representatives' features instead of their means, as with a pruning method."""

    name = "representatives_alone"  # not registered, so users cannot select it

    def group(self, view: View) -> Grouping:
        found = super().group(view)
        beyond = view.present.shape[1]
        place = torch.where(found.counts > 0, found.representatives, beyond)
        alone = place.new_zeros(len(place), beyond + 1, dtype=torch.bool).scatter_(1, place, True)[:, :-1]
        return dataclasses.replace(found, weights=alone, alone=True)


@dataclass(frozen=True)
class Variant:
    """A line of the table: its name, and the keys of its compression apart from the share of the tokens.

    Args:
        method: the clustering whose groups it merges, or the name of a method, which stands where the demo has it.
    """

    name: str
    keys: dict
    method: type[DPCKNN] | str = DPCKNN

    @property
    def slug(self) -> str:
        name = f"{self.method}--{self.name}" if isinstance(self.method, str) else self.name
        return "".join(letter if letter.isalnum() or letter == "_" else "-" for letter in name)

    def config(self, task: Task, share: float) -> CompressionConfig:
        if self is DENSE:
            return CompressionConfig.preset("dense")
        if isinstance(self.method, str):
            return methods.TableRow(self.method, self.keys["positions"], share, False).config.changed(**self.keys)
        return CompressionConfig(steps=[task.step(self.method, share)], **self.keys)


DENSE = Variant("dense", {})


def rows(counted_rules: Sequence[str] = COUNTED) -> list[Variant]:
    """The methods of the study, one per row of its tables: one position per token, with which all others are compared;
    PPE by every rule of positions; then one position, and PPE by `counted_rules`, with proportional attention."""
    one, *rules = by_rule(DPCKNN)
    alone = Variant("one position, its features alone", one.keys, RepresentativesAlone)
    counted = [one, *(rule for name in counted_rules for rule in rules if rule.name == name)]
    return [one, alone, *rules, *(Variant(row.name + SIZES, {**row.keys, **SIZES_COUNTED}) for row in counted)]


def by_rule(method: type[DPCKNN] | str) -> list[Variant]:
    """One position, and PPE by every rule, on the groups of a method."""
    ppe = {"positions": "ppe", "k": K}
    rules = {REFERENCE: {"positions": "keep_one"}, **{name: {**ppe, "members": name} for name in rule_names()}}
    return [Variant(rule, keys, method) for rule, keys in rules.items()]


class Questions:
    """The questions on a task's first `images` pictures or clips, prepared once for all models, which share a
    processor."""

    def __init__(self, task: Task, data: Path, images: int):
        self.task = task
        few = data / f"test-{images}.jsonl"
        lines = (data / "test.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
        write_text(few, "".join(lines[:images]))
        self.benchmark = benchmarks.load(task.name, few)
        self.samples = [self.benchmark[number] for number in range(len(self.benchmark))]
        self._batches: list[dict[str, torch.Tensor]] = []

    def ask(self, model: Any, processor: Any) -> list[float]:
        """The score of every question, in order. Answers are generated as in the demo."""
        answers = ModelAnswers(model, processor, EVAL.max_new_tokens)
        if not self._batches:
            starts = range(0, len(self.samples), BATCH)
            self._batches = [answers.prepare(self.samples[start : start + BATCH]) for start in starts]
        texts = [text for inputs in self._batches for text in answers.answer(inputs).answers]
        return [float(score(self.benchmark, *pair) or 0) for pair in zip(texts, self.samples, strict=True)]


def ask_all(
    folder: Path, weights: Path, questions: Questions, asked: Sequence[tuple[Variant, float]], how: str
) -> list[dict[str, Any]]:
    """The scores of each row with these weights; scores that are already in the folder are read from there.

    Args:
        how: "free", or how the weights were trained further ("sft", "distill").
    """
    out, model, processor = [], None, None
    for row, share in asked:
        file, config = folder / f"{row.slug}-{share:g}-{how}.json", row.config(questions.task, share)
        same = {"config": config.to_dict(), "weights": stamp(weights), "questions": len(questions.samples)}
        found = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        if found.get("made_from") != same:
            if model is None:
                model, processor = load_model(weights.parent, torch.device("cpu")), load_processor(weights.parent)
            scores = questions.ask(compress(model, config), processor)
            found = {"row": row.name, "share": share, "how": how, "made_from": same, "scores": scores}
            found |= {"method": row.method} if isinstance(row.method, str) else {}
            write_json(file, found)
            print(f"{folder.name} {how} {share:g} {row.slug}: {sum(scores) / len(scores):.3f}", flush=True)
        out.append(found)
    return out


def study(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Train the models and ask the questions; yields the contents of results.json after each part."""
    task, folder = TASKS[args.task], folder_of(args)
    task.draw(folder)
    set_up_process(1)
    questions, found = Questions(task, folder / "data", args.images), []
    named = {row.name: row for row in rows(rule_names())}
    free = [named[name] for name in args.rows] or rows(args.counted)
    for seed in range(args.seeds):
        task.train(folder, seed, args.base_steps)
    other = [row for name in methods.asked(args.methods) for row in by_rule(name)]
    for share, variants in [
        *((share, free) for share in args.shares),
        *((share, other) for share in args.methods_shares if other),
    ]:
        first = variants is free and share == args.shares[0]
        asked = [*([(DENSE, 1.0)] if first else []), *((row, share) for row in variants)]
        for seed in range(args.seeds):
            own = folder / f"seed{seed}"
            answered = ask_all(own, own / "base" / "final" / "model.safetensors", questions, asked, "free")
            found += [{**one, "seed": seed} for one in answered]
        yield results(args, questions, found)
    for how, names, steps, distill in (
        ("sft", args.tune, args.tune_steps, 0.0),
        ("distill", args.distill, args.distill_steps, 1.0),
    ):
        for share, seed, name in itertools.product(args.tune_shares if names else (), range(args.tune_seeds), names):
            row, to = named[name], f"{how}-{named[name].slug}-{share:g}"
            weights = tuned(task, folder, seed, to, row.config(task, share), steps, distill)
            answered = ask_all(folder / f"seed{seed}", weights, questions, [(row, share)], how)
            found += [{**one, "seed": seed} for one in answered]
            yield results(args, questions, found)


def folder_of(args: argparse.Namespace) -> Path:
    return Path(args.output) / TASKS[args.task].folder


def results(args: argparse.Namespace, questions: Questions, found: list[dict[str, Any]]) -> dict[str, Any]:
    """The contents of results.json."""
    types = [sample["type"] for sample in questions.samples]
    pictures = [str(sample.get("image_path") or sample["video_path"]) for sample in questions.samples]
    facts = {name: getattr(args, name) for name in ("task", "images", "base_steps", "tune_steps", "distill_steps")}
    facts |= {"machine": devices.describe(torch.device("cpu"))["name"], "date": str(date.today())}
    command = shlex.join(["python", "scripts/study_positions.py", *sys.argv[1:]])
    return {**facts, "types": types, "pictures": pictures, "results": found, "command": command}


def parsed(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [row.name for row in rows(rule_names())]
    trained = {"nargs": "+", "choices": names, "default": [], "metavar": "ROW"}
    parser.add_argument("--task", choices=TASKS, default="layout", help="pictures of figures, or clips (motion)")
    parser.add_argument("--output", default="runs/positions")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--images", type=int, help="test pictures, 12 questions each (24), or clips, 3 each (96)")
    parser.add_argument("--shares", type=float, nargs="*", default=SHARES, help="fractions of the tokens to keep")
    parser.add_argument("--rows", **trained, help="rows to run without training (default: all)")
    parser.add_argument(
        "--counted", nargs="*", choices=rule_names(), default=COUNTED, help="rules also run with the sizes counted"
    )
    parser.add_argument("--methods", nargs="+", default=[], metavar="NAME", help="methods to run every rule on, or all")
    parser.add_argument("--methods-shares", type=float, nargs="+", default=[0.25], help="shares for --methods")
    parser.add_argument("--base-steps", type=int, help="steps of the dense models (900; clips: 600; make demo: 2,600)")
    parser.add_argument("--tune", **trained, help="rows to fine-tune, of any rule")
    parser.add_argument("--distill", **trained, help="rows to train on the dense model, of any rule")
    parser.add_argument("--tune-shares", type=float, nargs="+", default=[0.25], help="shares for --tune and --distill")
    parser.add_argument("--tune-seeds", type=int, default=1, help="number of seeds to tune and distill")
    parser.add_argument("--tune-steps", type=int, default=320)
    parser.add_argument("--distill-steps", type=int, default=200)
    parser.add_argument("--page", help="document whose marked part is rewritten")
    args = parser.parse_args(argv)
    task = TASKS[args.task]
    args.images, args.base_steps = args.images or task.images, args.base_steps or task.base_steps
    if args.methods and task.name != "layout":
        parser.error(f"--methods with --task {task.name}: only pictures are grouped by other methods; leave one out")
    methods.asked(args.methods)  # raises before anything is trained
    if args.tune_seeds > args.seeds:
        parser.error(f"--tune-seeds {args.tune_seeds} exceeds the number of dense models ({args.seeds}): raise --seeds")
    return args


def main(argv: list[str] | None = None) -> None:
    args, found = parsed(argv), {}
    for found in study(args):
        write_json(folder_of(args) / "results.json", found)
        write_text(folder_of(args) / "positions.md", measured(found))
    print(measured(found))
    if args.page:
        print(put(Path(args.page), found))


if __name__ == "__main__":
    main()
