"""Which rule of positions is best: every rule of ppe_npu/methods/positions on the demo's task, beside one position.

    python scripts/study_positions.py --output runs/positions

trains one dense model a seed, then asks all of them the same questions with every rule at every share of the tokens, as
they come (training-free). --tune nearest spread fine-tunes with these rules, too, and --distill lets the dense model
teach them. --page docs/positions.md puts what was found there. A run that was stopped goes on where it was: what is
finished lies in the output folder.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import shlex
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from study_positions_page import PAGE_END, PAGE_START, measured

from ppe_npu.checkpoints.loading import load_model, load_processor
from ppe_npu.config import CompressionConfig
from ppe_npu.demo import pipeline
from ppe_npu.demo.recipe import BASE, EVAL, TUNE, K
from ppe_npu.evaluation import benchmarks
from ppe_npu.evaluation.answers import ModelAnswers
from ppe_npu.evaluation.results import score
from ppe_npu.files import write_json, write_text
from ppe_npu.methods.dpc_knn import DPCKNN
from ppe_npu.methods.grouping import Grouping
from ppe_npu.methods.positions import rule_names
from ppe_npu.methods.view import View
from ppe_npu.models import compress

SHARES = (0.25, 0.5, 0.1)  # in the order in which they are asked
TUNED_SHARE = 0.25
BATCH = 192
COUNTED = ("nearest", "spread", "quantiles", "mean_rotation")  # the rules that are asked with the sizes counted, too


@dataclass(frozen=True)
class RepresentativesAlone(DPCKNN):
    """DPC-KNN whose groups have their representatives' features and not their means: what a pruning method leaves."""

    name = "representatives_alone"  # not registered: no user can ask for it

    def group(self, view: View) -> Grouping:
        found = super().group(view)
        beyond = view.present.shape[1]
        place = torch.where(found.counts > 0, found.representatives, beyond)
        alone = place.new_zeros(len(place), beyond + 1, dtype=torch.bool).scatter_(1, place, True)[:, :-1]
        return dataclasses.replace(found, weights=alone, alone=True)


@dataclass(frozen=True)
class Row:
    """A line of the table: its name, and what its compression says beside the share of the tokens."""

    name: str
    keys: dict
    method: type[DPCKNN] = DPCKNN

    @property
    def slug(self) -> str:
        return "".join(letter if letter.isalnum() or letter == "_" else "-" for letter in self.name)

    def config(self, share: float) -> CompressionConfig:
        if self is DENSE:
            return CompressionConfig.preset("dense")
        return CompressionConfig(steps=[self.method(ratio=share)], **self.keys)


DENSE = Row("dense", {})


def rows() -> list[Row]:
    """One position first, with which all others are compared; then every rule there is."""
    ppe = {"positions": "ppe", "k": K}
    counted = {"proportional_attention": True}
    return [
        Row("one position", {"positions": "keep_one"}),
        Row("one position, its features alone", {"positions": "keep_one"}, RepresentativesAlone),
        *(Row(name, {**ppe, "members": name}) for name in rule_names()),
        Row("one position, sizes counted", {"positions": "keep_one", **counted}),
        *(Row(f"{name}, sizes counted", {**ppe, "members": name, **counted}) for name in COUNTED),
    ]


class Questions:
    """The questions of the first `images` test pictures, prepared once for all models, which have one processor."""

    def __init__(self, data: Path, images: int):
        few = data / f"test-{images}.jsonl"
        lines = (data / "test.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
        write_text(few, "".join(lines[:images]))
        self.benchmark = benchmarks.load("layout", few)
        self.samples = [self.benchmark[number] for number in range(len(self.benchmark))]
        self._batches: list[dict[str, torch.Tensor]] = []

    def ask(self, model: Any, processor: Any) -> list[float]:
        """The score of every question, in order; answers are generated, as the demo's are."""
        answers = ModelAnswers(model, processor, EVAL.max_new_tokens)
        if not self._batches:
            starts = range(0, len(self.samples), BATCH)
            self._batches = [answers.prepare(self.samples[start : start + BATCH]) for start in starts]
        texts = [text for inputs in self._batches for text in answers.answer(inputs).answers]
        return [float(score(self.benchmark, *pair) or 0) for pair in zip(texts, self.samples, strict=True)]


def ask_all(
    folder: Path, weights: Path, questions: Questions, asked: Sequence[tuple[Row, float]], how: str
) -> list[dict[str, Any]]:
    """What each of these rows answers with these weights; from the folder where it was asked before.

    Args:
        how: "free", or how the weights were trained further.
    """
    out, model, processor = [], None, None
    stamp = [weights.stat().st_size, weights.stat().st_mtime_ns]
    for row, share in asked:
        file, config = folder / f"{row.slug}-{share:g}-{how}.json", row.config(share)
        same = {"config": config.to_dict(), "weights": stamp, "questions": len(questions.samples)}
        found = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        if found.get("made_from") != same:
            if model is None:
                model, processor = load_model(weights.parent, torch.device("cpu")), load_processor(weights.parent)
            scores = questions.ask(compress(model, config), processor)
            found = {"row": row.name, "share": share, "how": how, "made_from": same, "scores": scores}
            write_json(file, found)
            print(f"{folder.name} {how} {share:g} {row.name}: {sum(scores) / len(scores):.3f}", flush=True)
        out.append(found)
    return out


def base(output: Path, seed: int, steps: int) -> Path:
    """The weights of one seed's dense model; trained where they are not there."""
    pipeline.BASE = dataclasses.replace(BASE, max_steps=steps)
    pipeline._train_base((str(output), seed, "cpu", 1))
    return output / f"seed{seed}" / "base" / "final" / "model.safetensors"


def tuned(output: Path, seed: int, row: Row, steps: int, distill: float) -> Path:
    """The weights of one seed's model, fine-tuned with a row's compression, by the labels or by the dense model."""
    folder = output / f"seed{seed}"
    recipe = dataclasses.replace(TUNE, max_steps=steps)
    to = folder / f"{'distill' if distill else 'sft'}-{row.slug}"
    more = {"distill_weight": distill, "distill_teacher": "start"} if distill else {}
    config = row.config(TUNED_SHARE)
    start, data = folder / "base" / "final", output / "data" / "tune.jsonl"
    pipeline.train_once(recipe, start, data, to, config, seed, "cpu", **more)
    return to / "final" / "model.safetensors"


def study(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Train and ask; after each part what results.json holds."""
    output = Path(args.output)
    pipeline._make_data(output / "data")
    pipeline.set_up_process(1)
    questions, found = Questions(output / "data", args.images), []
    weights = [base(output, seed, args.base_steps) for seed in range(args.seeds)]
    for share in args.shares:
        asked = [*([(DENSE, 1.0)] if share == args.shares[0] else []), *((row, share) for row in rows())]
        for seed, own in enumerate(weights):
            answered = ask_all(output / f"seed{seed}", own, questions, asked, "free")
            found += [{**one, "seed": seed} for one in answered]
        yield results(args, questions, found)
    named = {row.name: row for row in rows()}
    for how, names, steps, distill in (
        ("sft", args.tune, args.tune_steps, 0.0),
        ("distill", args.distill, args.distill_steps, 1.0),
    ):
        for seed in range(args.tune_seeds):
            for name in names:
                own, asked = tuned(output, seed, named[name], steps, distill), [(named[name], TUNED_SHARE)]
                answered = ask_all(output / f"seed{seed}", own, questions, asked, how)
                found += [{**one, "seed": seed} for one in answered]
        if names:
            yield results(args, questions, found)


def results(args: argparse.Namespace, questions: Questions, found: list[dict[str, Any]]) -> dict[str, Any]:
    """What results.json holds."""
    types = [sample["type"] for sample in questions.samples]
    pictures = [str(sample["image_path"]) for sample in questions.samples]
    facts = {name: getattr(args, name) for name in ("images", "base_steps", "tune_steps", "distill_steps")}
    command = shlex.join(["python", "scripts/study_positions.py", *sys.argv[1:]])
    return {**facts, "types": types, "pictures": pictures, "results": found, "command": command}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", default="runs/positions")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--images", type=int, default=24, help="test pictures that are asked about, 12 questions each")
    parser.add_argument("--shares", type=float, nargs="*", default=SHARES, help="of the tokens that are kept")
    parser.add_argument("--base-steps", type=int, default=900, help="of the dense models (make demo takes 2,600)")
    parser.add_argument("--tune", nargs="*", default=[], help="rows that are fine-tuned at 25 %%")
    parser.add_argument("--distill", nargs="*", default=[], help="rows that the dense model teaches at 25 %%")
    parser.add_argument("--tune-seeds", type=int, default=1)
    parser.add_argument("--tune-steps", type=int, default=320)
    parser.add_argument("--distill-steps", type=int, default=200)
    parser.add_argument("--page", help="a document with marks around what is written anew")
    args = parser.parse_args()
    for found in study(args):
        write_json(Path(args.output) / "results.json", found)
        text = measured(found)
        print(write_text(Path(args.output) / "positions.md", text), flush=True)
        if args.page:
            page = Path(args.page).read_text(encoding="utf-8")
            before, _, rest = page.partition(PAGE_START)
            write_text(Path(args.page), before + PAGE_START + text + PAGE_END + rest.partition(PAGE_END)[2])


if __name__ == "__main__":
    main()
