"""Prompts that protocols word themselves, and how long answers may be."""

from __future__ import annotations

from copy import copy

import pytest

from ppe_npu.evaluation import protocols
from ppe_npu.evaluation.benchmarks import registry
from ppe_npu.evaluation.benchmarks.dataset import LETTER, lettered
from ppe_npu.evaluation.benchmarks.mmmu import listed
from ppe_npu.evaluation.samples import conversation

TEN = "\n".join(f"{letter}. choice {letter.lower()}" for letter in "ABCDEFGHIJ")
DIRECTLY = "Answer directly with the option letter from the given choices. "
PICK = "Please select the correct answer from the options above. \n"


@pytest.mark.parametrize(
    ("name", "number", "prompt"),
    [
        ("mmstar", 0, f"Question: Which?\nOptions:\nA. red\nB. blue\nC. green\nD. dark\n{PICK}"),
        ("realworldqa", 0, f"Question: Which way?\nOptions:\nA. Left\nB. Right\n{PICK}"),
        ("realworldqa", 1, "How many cars?"),  # without options
        ("mmmu_pro", 0, f"Question: What is in <image>?\nOptions:\n{TEN}\n{DIRECTLY}"),
        ("mmmu_pro_vision", 0, f"Answer the following multiple-choice question in the image. {DIRECTLY}"),
        ("seedbench_2_plus", 0, f"Question: Where?\nOptions:\nA. a\nB. b\nC. c\nD. d\n{PICK}"),
    ],
)
def test_vlmevalkits_prompts(load, name, number, prompt):
    benchmark = copy(load(name))
    registry.ask_by(protocols.load("vlmevalkit"), benchmark)
    assert benchmark[number]["prompt"] == prompt


@pytest.mark.parametrize(
    ("name", "begins", "ends"),
    [
        ("videomme", "\nThese are the frames of a video. Select the best", "\nD. All the same.\nAnswer: "),
        ("videomme_subtitles", "\nThese are the frames of a video. This video's subtitles", "\nAnswer: "),
        ("mvbench", "Carefully watch the video", "Only give the best option.Best option:("),
        ("mlvu", "Carefully watch this video", "\nOnly give the best option."),
    ],
)
def test_vlmevalkits_prompts_of_videos(load, name, begins, ends):
    """Words of the system at the start of a prompt come before the video, as VLMEvalKit's model has them."""
    benchmark = copy(load(name))
    registry.ask_by(protocols.load("vlmevalkit"), benchmark)
    prompt = benchmark[0]["prompt"]
    assert prompt.startswith(begins)
    assert prompt.endswith(ends)
    assert [part["type"] for part in conversation(benchmark[0])[0]["content"]] == (
        ["text", "video", "text"] if "<video>" in prompt else ["video", "text"]
    )
    if name == "mvbench":
        assert conversation(benchmark[0])[0]["content"][0]["text"].endswith("addresses the question.\n")
    assert ("<video>Question: " in prompt) == (name in ("mvbench", "mlvu"))


CHOOSE = "Answer with the option letter from the given choices directly."


@pytest.mark.parametrize(
    ("name", "tokens", "prompt"),
    [
        ("mmstar", 128, "Which?\nOptions: A: red, B: blue, C: green, D: dark\n" + LETTER.removesuffix(".")),
        ("realworldqa", 16, None),
        ("hallusionbench", 128, "{question}"),
        ("lvbench", 16, "{question}\nAnswer the question with the option letter"),
        ("mmmu_pro", 256, f"<image>What is in <image 1>?\n{{options}}\n\n{CHOOSE}"),
        ("mmmu_pro_vision", 256, CHOOSE),
        ("textvqa", 128, None),
        ("mmbench_en", 1024, None),
        ("mmbench_cn", 256, None),
        ("mathvista", 16384, None),
        ("mmlongbench_doc", 1024, None),
    ],
)
def test_what_lmms_eval_asks_and_how_long_answers_may_be(load, name, tokens, prompt):
    """As in its tasks' .yaml files (0.7.3); a task that gives no length uses its model's 128."""
    benchmark = copy(load(name))
    registry.ask_by(protocols.load("lmms-eval"), benchmark)
    assert benchmark.max_new_tokens == tokens
    if prompt is not None:
        row = benchmark.rows[0]
        options = lettered(listed(row["options"])) if "{options}" in prompt else ""
        assert benchmark[0]["prompt"] == prompt.format(question=row.get("question"), options=options)


def test_vlmevalkit_shows_mmmus_pictures_wherever_they_are_named(load):
    benchmark = copy(load("mmmu"))
    first = next(number for number, row in enumerate(benchmark.rows) if row["id"] == "validation_Art_Theory_1")
    shown = benchmark[first]["prompt"].count("<image>"), len(benchmark[first]["image"])
    assert shown == (2, 2)  # <image 2> and <image 1>; the second <image 2> stays text
    registry.ask_by(protocols.load("vlmevalkit"), benchmark)
    sample = benchmark[first]
    assert sample["prompt"].startswith("Question: Compare <image> and <image>; <image> is\nOptions:\nA. ")
    assert sample["prompt"].endswith(PICK)
    shades = [picture.convert("L").getpixel((0, 0)) for picture in sample["image"]]
    assert len(shades) == sample["prompt"].count("<image>")
    assert shades[0] == shades[2] != shades[1]


@pytest.mark.parametrize("name", ["mmmu", "mmmu_pro"])
@pytest.mark.parametrize(
    ("question", "options"),
    [
        ("Which is in <image 1>", ["<image 2>", "<image 3>"]),
        ("\n<image 1>\n<image 2>\n\n<image 3>", ["a", "b"]),
        ("<image 1><image 2> and\n\n<image 1>\n", ["a", "<image 1>\n"]),
    ],
)
def test_vlmevalkit_keeps_the_line_breaks_beside_mmmus_pictures(load, name, question, options):
    benchmark = copy(load(name))
    registry.ask_by(protocols.load("vlmevalkit"), benchmark)
    benchmark._images = lambda number, pictures: [f"<image {picture}>" for picture in pictures]
    row = {**benchmark.rows[0], "question": question, "options": str(options), "question_type": "multiple-choice"}
    content = conversation(benchmark.sample(row))[0]["content"]
    assert "".join(part[part["type"]] for part in content) == benchmark.form.format(
        question=question, options=lettered(options)
    )
    assert sum(part["type"] == "image" for part in content) == (question + str(options)).count("<image")


def test_a_question_of_mmstar_whose_options_have_another_form_is_asked_as_it_is(load):
    benchmark = copy(load("mmstar"))
    registry.ask_by(protocols.load("vlmevalkit"), benchmark)
    row = {**benchmark.rows[0], "question": "Which?\n(A) red (B) blue"}
    assert benchmark.sample(row)["prompt"].startswith("Which?\n(A) red (B) blue\nAnswer with")
