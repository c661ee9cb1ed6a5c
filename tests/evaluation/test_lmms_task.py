"""Whole tasks in lmms-eval, from its command line to its results: batches of four, pictures and videos."""

import importlib.util
import json
import os
import subprocess
import sys

import pytest

from ppe_npu.evaluation.lmms import Answerer, question

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("lmms_eval") is None,
    reason="lmms_eval is not installed: `make test-lmms` makes .venv-lmms, which has it, and runs this there",
)

_ARGUMENTS = {"compression": "ppe", "ratio": 0.4, "k": 4, "nframes": 4}
_QUESTIONS = ("shape red", "row blue", "col green", "count black", "barlen purple", "row yellow", "count red")
_UTILS = """\
def visual(doc):
    return [doc["visual"]] if doc["visual"].endswith("mp4") else [__import__("PIL.Image").Image.open(doc["visual"])]


def length(doc, results):
    return {"words": len(results[0].split())}
"""
_COMMON = """\
dataset_path: json
dataset_kwargs:
  data_files:
    test: {data}
test_split: test
doc_to_visual: !function utils.visual
doc_to_text: question
"""
_LOOK = """\
task: tiny_look
output_type: generate_until
doc_to_target: answer
generation_kwargs:
  max_new_tokens: 3
  temperature: 0
  do_sample: false
process_results: !function utils.length
metric_list:
  - metric: words
    aggregation: mean
    higher_is_better: true
"""
_CHOOSE = """\
task: tiny_choose
output_type: multiple_choice
doc_to_choice: ["red", "3", "shape ring"]
doc_to_target: number
metric_list:
  - metric: acc
    aggregation: mean
    higher_is_better: true
"""


@pytest.fixture
def documents(tmp_path, write_image, write_clip):
    """Five pictures and two videos with a question each; also writes the folder of tasks."""
    visuals = [*(write_image(f"{n}.png", n) for n in range(5)), write_clip("a.mp4"), write_clip("b.mp4", frames=12)]
    found = [
        {"visual": visual, "question": asked, "answer": "red 3", "number": number % 3}
        for number, (visual, asked) in enumerate(zip(visuals, _QUESTIONS))
    ]
    folder = tmp_path / "tasks"
    folder.mkdir()
    data = tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps(document) + "\n" for document in found))
    (folder / "utils.py").write_text(_UTILS)
    for name, text in (("look", _LOOK), ("choose", _CHOOSE)):
        (folder / f"{name}.yaml").write_text(_COMMON.format(data=data) + text)
    return found


@pytest.fixture
def run_task(tiny_folder, tmp_path):
    def run_task(task: str, *more: str) -> tuple[dict, list[dict]]:
        """Returns lmms-eval's results of a task, and its log of the samples, sorted by document."""
        given = ",".join(f"{key}={value}" for key, value in {"pretrained": tiny_folder, **_ARGUMENTS}.items())
        asked = ["--model", "ppe_npu", "--model_args", given, "--tasks", task, "--batch_size", "4", "--device", "cpu"]
        where = ["--include_path", str(tmp_path / "tasks"), "--output_path", str(tmp_path / "out"), "--log_samples"]
        offline = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hf"), "LMMS_EVAL_HOME": str(tmp_path / "home")}
        done = subprocess.run(
            [sys.executable, "-m", "lmms_eval", *asked, *where, *more],
            env={**os.environ, **offline},
            cwd=tmp_path,
            capture_output=True,
            text=True,
        )
        found = list((tmp_path / "out").rglob("*results.json"))
        assert len(found) == 1, done.stdout[-2000:] + done.stderr[-6000:]  # it exits with 0 even after an error
        (samples,) = (tmp_path / "out").rglob(f"*samples_{task}.jsonl")
        rows = [json.loads(line) for line in samples.read_text().splitlines()]
        return json.loads(found[0].read_text())["results"][task], sorted(rows, key=lambda row: row["doc_id"])

    return run_task


@pytest.mark.parametrize("interface", ["chat", "simple"])
def test_a_generation_task(tiny_folder, documents, run_task, interface):
    results, samples = run_task("tiny_look", *(["--force_simple"] if interface == "simple" else []))
    answerer = Answerer.load(tiny_folder, device="cpu", **_ARGUMENTS)
    options = {"max_new_tokens": 3}
    expected = [answerer.answers([question(doc["question"], [doc["visual"]])], options)[0] for doc in documents]
    assert [row["filtered_resps"] for row in samples] == expected
    counts = [row["token_counts"] for row in samples]
    assert [count[0]["output_tokens"] for count in counts] == answerer.new_tokens  # for its throughput
    words = sum(len(answer.split()) for answer in expected) / len(expected)
    assert results["words,none"] == pytest.approx(words)


def test_a_multiple_choice_task(tiny_folder, documents, run_task):
    results, _ = run_task("tiny_choose", "--force_simple")
    answerer, right = Answerer.load(tiny_folder, device="cpu", **_ARGUMENTS), 0
    for document in documents:
        asked = [question(document["question"], [document["visual"]])] * 3
        losses = [loss for loss, _ in answerer.losses(asked, ["red", "3", "shape ring"])]
        right += losses.index(min(losses)) == document["number"]
    assert results["acc,none"] == pytest.approx(right / len(documents))


def test_the_entry_point_brings_both_interfaces():
    from lmms_eval.models import MODEL_REGISTRY_V2

    chat = MODEL_REGISTRY_V2.get_model_class("ppe_npu")
    simple = MODEL_REGISTRY_V2.get_model_class("ppe_npu", force_simple=True)
    assert (chat.is_simple, simple.is_simple) == (False, True)
    with pytest.raises(ValueError, match="unknown model_args ratios: use some of pretrained"):
        chat(pretrained="here", ratios=0.5)
    with pytest.raises(ValueError, match="model_args without pretrained"):
        simple(ratio=0.5)
