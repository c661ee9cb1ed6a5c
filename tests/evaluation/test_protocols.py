"""Named protocols: what they set, what a result records of them, and which settings override them."""

from __future__ import annotations

import math
from copy import copy
from dataclasses import replace
from types import SimpleNamespace

import pytest
import tolerances

from ppe_npu.cli.evaluate import _processors
from ppe_npu.data.sampling import VideoSampling
from ppe_npu.errors import InputError
from ppe_npu.evaluation import protocols
from ppe_npu.evaluation.benchmarks import registry
from ppe_npu.evaluation.identity import benchmark_identity, check_settings
from ppe_npu.evaluation.metrics import official
from ppe_npu.evaluation.run_protocol import label
from ppe_npu.files import write_json
from ppe_npu.training.adapted import Checkpoint

TOKEN = 28 * 28  # pixels of a token of Qwen2-VL and Qwen2.5-VL


def test_the_four_are_there_and_an_unknown_one_is_refused_by_name():
    assert protocols.names() == ["checkpoint", "lmms-eval", "qwen", "vlmevalkit"]
    assert all(protocols.load(name).name == name for name in protocols.names())
    with pytest.raises(InputError, match="protocol 'lmms' is unknown: use one of checkpoint, lmms-eval"):
        protocols.load("lmms")


@pytest.mark.parametrize("name", protocols.names())
def test_prompts_are_of_benchmarks_that_are_there_and_take_what_those_fill_in(name):
    for benchmark, texts in protocols.load(name).prompts.items():
        assert benchmark in registry.OURS or benchmark == "longvideobench_v"
        assert set(texts) <= {"form", "hint_form", "open_form", "choice_form", "shown", "asked_by", "max_new_tokens"}
        forms = [text for key, text in texts.items() if key.endswith("form")]
        assert all("{" in text for text in forms) or benchmark == "mmmu_pro_vision"  # whose picture holds the question
        assert texts.get("max_new_tokens", 1) > 0


# Tokens of one picture, worked out by hand: each side rounds to a multiple of 28, then the area is brought into bounds.
@pytest.mark.parametrize(
    ("height", "width", "tokens"),
    [
        (480, 640, {"qwen": 391, "lmms-eval": 391, "vlmevalkit": 1302}),
        (64, 200, {"qwen": 14, "lmms-eval": 290, "vlmevalkit": 1344}),
        (2200, 1700, {"qwen": 4819, "lmms-eval": 1989, "vlmevalkit": 4819}),
    ],
)
def test_a_picture_has_the_tokens_that_the_protocols_make_of_it(height, width, tokens):
    from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize

    for name, count in tokens.items():
        least, most = protocols.load(name).pixels(None, None)
        rows, columns = smart_resize(height, width, 28, least, most)
        assert rows * columns // TOKEN == count, name


def test_pictures_of_ocrbench_begin_smaller_under_vlmevalkit(load, tiny_folder):
    """Its model shows them from 10 x 10 tokens on (qwen2_vl/model.py, _prepare_content), all others from 1,280."""
    protocol = protocols.load("vlmevalkit")
    assert protocol.of("ocrbench").pixels(None, None) == (100 * TOKEN, 16384 * TOKEN)
    assert protocol.of("ocrbench").pixels(3136, None) == (3136, 16384 * TOKEN)
    assert protocol.of("textvqa") == protocol
    asked = SimpleNamespace(min_pixels=None, max_pixels=None)
    processor_of = _processors(asked, Checkpoint.of(tiny_folder), protocol)
    named = [processor_of(SimpleNamespace(name=name)) for name in ("ocrbench", "textvqa", "docvqa")]
    assert [one.image_processor.size["shortest_edge"] // TOKEN for one in named] == [100, 1280, 1280]
    assert named[1] is named[2]
    benchmark = copy(load("ocrbench"))
    registry.ask_by(protocol, benchmark)
    now = {"benchmark": "ocrbench", "protocol": benchmark.protocol.recorded()}
    assert now["protocol"]["image"]["min_pixels"] == 100 * TOKEN
    assert label(now) == "vlmevalkit"
    assert label({"benchmark": "ocrbench", "protocol": protocol.recorded()}) == "vlmevalkit (of another edition)"


def test_a_videos_budget_is_shared_by_its_frames():
    def tokens(name, seconds):
        sampling = protocols.load(name).sampling()
        frames = sampling.count(int(seconds * 30), 30.0, 2)
        least, most = sampling.frame_pixels(frames, 1, 10**9)
        assert least == (256 if name == "lmms-eval" else 128) * TOKEN
        return frames, min(most, 1280 * 720) * frames // 2 // TOKEN

    # 384 s are 768 frames, each with 1.05 times the minimum; with few frames, each has the maximum.
    frames, many = tokens("vlmevalkit", 384)
    assert (frames, many) == (768, 51_609)  # 384 steps of 128 * 1.05 tokens, rounded down
    assert tokens("vlmevalkit", 8) == (16, 768 * 8)
    assert tokens("lmms-eval", 384) == tokens("lmms-eval", 4) == (32, 768 * 16)  # however short
    assert tokens("lmms-eval", 0.7) == (20, 768 * 10)  # of 21 frames
    # Between them the whole budget is used: 24,576 tokens.
    assert tokens("qwen", 50) == (100, 24_575)  # what 19,267,584 * 2 // 100 leaves


def test_without_a_budget_bounds_are_as_they_were():
    assert VideoSampling().frame_pixels(768, 4, 9) == (4, 9)
    assert VideoSampling(max_pixels=6).frame_pixels(768, 4, 9, whole=True) == (4, 6)
    assert VideoSampling(total_pixels=100, min_pixels=1).frame_pixels(4, 4, 90) == (1, 50)
    assert VideoSampling(total_pixels=100, min_pixels=1).frame_pixels(4, 4, 90, whole=True) == (4, 200)


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ({"nframes": 8}, {"nframes": 8, "fps": None, "max_frames": 32}),
        ({"fps": 1.0}, {"fps": 1.0, "nframes": None, "max_frames": 32}),
        ({"max_pixels": 784}, {"max_pixels": 784, "min_pixels": None}),  # the protocol's minimum is larger
        ({"min_pixels": 10**6}, {"min_pixels": 10**6, "max_pixels": None}),
        ({"fps": None, "max_pixels": None}, {"fps": None, "nframes": 32, "max_pixels": 768 * TOKEN}),
    ],
)
def test_what_is_asked_for_goes_before_the_protocol(asked, expected):
    sampling = protocols.load("lmms-eval").sampling(**asked)
    assert {key: getattr(sampling, key) for key in expected} == expected


@pytest.mark.parametrize(
    ("asked", "pixels"),
    [((None, None), (200704, 1605632)), ((None, 784), (None, 784)), ((10**7, None), (10**7, None)), ((1, 2), (1, 2))],
)
def test_pixels_that_are_asked_for_go_before_the_protocol(asked, pixels):
    assert protocols.load("lmms-eval").pixels(*asked) == pixels


def test_a_result_says_what_it_went_by():
    found = protocols.load("lmms-eval").recorded({"nframes": 8, "fps": None})
    assert found["name"] == "lmms-eval"
    assert found["changed"] == {"nframes": 8}
    assert found["video"]["max_frames"] == 32
    assert label({"protocol": found}) == "lmms-eval (nframes 8)"
    assert label({"protocol": protocols.load("qwen").recorded()}) == "qwen"
    drawn = [label({"protocol": replace(protocols.load("qwen"), draws=seed).recorded()}) for seed in (0, 1)]
    older = {**found, "video": {"fps": 2.0, "max_frames": 32}}
    assert label({"protocol": older}) == "lmms-eval (nframes 8, of another edition)"
    assert drawn == ["qwen (options drawn)"] * 2  # no table shows them beside runs in which such answers are wrong
    assert label({}) == label({"protocol": "text"}) == "checkpoint"  # the first version recorded none


def test_mmbench_is_asked_with_all_turns_where_the_protocol_says_so():
    assert registry.named_by(protocols.load("vlmevalkit"), "mmbench_en") == "mmbench_en_circular"
    assert registry.named_by(protocols.load("checkpoint"), "mmbench_en") == "mmbench_en"
    assert registry.named_by(protocols.load("qwen"), "textvqa") == "textvqa"
    assert registry.named_by(None, "mmbench_cn") == "mmbench_cn"


def test_a_benchmark_of_ones_own_is_left_as_it_is():
    own = SimpleNamespace(modality="image")
    registry.ask_by(protocols.load("vlmevalkit"), own)
    assert own == SimpleNamespace(modality="image")


def test_every_number_is_finite_and_positive():
    for name in protocols.names():
        found = protocols.load(name)
        assert all(math.isfinite(value) and value > 0 for part in (found.image, found.video) for value in part.values())


def test_a_folder_of_the_first_edition_goes_on_as_what_it_was_and_says_how(tmp_path):
    """The first version named no protocol, and used the checkpoint's."""
    written = {"benchmark": "textvqa", "samples": 1}
    write_json(tmp_path / "settings.json", written)
    unsaid = {"protocol": protocols.load("checkpoint").recorded()}
    check_settings(tmp_path, {**written, "protocol": protocols.load("checkpoint").recorded()}, unsaid)
    with pytest.raises(
        InputError, match=r"another protocol \(.*checkpoint.*, now .*lmms-eval.*continue it with --protocol checkpoint"
    ):
        check_settings(tmp_path, {**written, "protocol": protocols.load("lmms-eval").recorded()}, unsaid)


def test_answers_through_another_processor_are_another_runs(tmp_path):
    """Earlier versions did not record the processor; such a run goes on."""
    from ppe_npu.evaluation.identity import check_settings
    from ppe_npu.files import write_json

    written = {"benchmark": "textvqa", "samples": 1}
    write_json(tmp_path / "settings.json", written)
    check_settings(tmp_path, {**written, "processor": "ab"})
    write_json(tmp_path / "settings.json", {**written, "processor": "ab"})
    check_settings(tmp_path, {**written, "processor": "ab"})
    with pytest.raises(InputError, match=r"another processor \('ab', now 'cd'\)"):
        check_settings(tmp_path, {**written, "processor": "cd"})


@pytest.mark.parametrize("name", ["mmmu", "mmmu_pro", "nextqa_mc", "longvideobench", "longvideobench_v", "egoschema"])
def test_an_answer_without_a_letter_is_drawn_under_lmms_eval_too(load, name):
    benchmark, protocol = copy(load(name)), protocols.load("lmms-eval")
    registry.ask_by(protocol, benchmark)
    sample = next(one for one in benchmark if one.get("options"))
    assert benchmark.judged("?", sample) == 0.0
    scores = []
    for seed in range(200):
        registry.ask_by(replace(protocol, draws=seed), benchmark)
        scores.append(benchmark.judged("?", sample))
    share = 1 / len(sample["options"])
    assert set(scores) == {0.0, 1.0}
    assert abs(sum(scores) / 200 - share) < tolerances.share_error(share, 200)
    assert benchmark.judged(f"({sample['GT']})", sample) == 1.0


# VLMEvalKit turns an open question into a choice: A is the right answer as it is written, B "Other Answers".
@pytest.mark.parametrize(
    ("truth", "answer", "expected"),
    [
        ("3.5", "3.5", 1.0),
        ("3.5", "3.5 m", 1.0),
        ("3.5", "A", 1.0),
        ("3.5", "B", 0.0),
        ("3.5", "4", 0.0),
        ("3.5", "It is 3.5, other answers are wrong", 0.0),  # both texts occur
        ("['24/7', '3.429']", "24/7", 0.0),  # the list is one text
        ("C", "C", 0.0),  # C is right, but is not one of the two options
    ],
)
def test_vlmevalkit_reads_mmmus_open_answers_as_a_choice_of_two(load, truth, answer, expected):
    benchmark = copy(load("mmmu"))
    registry.ask_by(protocols.load("vlmevalkit"), benchmark)
    sample = {"index": "x", "options": None, "GT": [truth], "written": truth}
    assert benchmark.judged(answer, sample) == expected


def test_realworldqas_options_are_read_by_vlmevalkits_rule_and_other_answers_as_before(load):
    benchmark = copy(load("realworldqa"))
    registry.ask_by(protocols.load("vlmevalkit"), benchmark)
    choice, open_one = benchmark[0], benchmark[1]
    said = ("B", "The answer is B", "right", "Left", "")
    assert [benchmark.judged(answer, choice) for answer in said] == [1.0, 1.0, 1.0, 0.0, 0.0]
    assert [benchmark.judged(answer, open_one) for answer in ("3", "Three", "4")] == [1.0, 1.0, 0.0]


@pytest.mark.parametrize(
    ("name", "protocol", "edition"),
    [
        ("tempcompass", None, 2), ("vqav2", "lmms-eval", 3), ("mmbench_en", "lmms-eval", 3), ("mmbench_en", "qwen", 2),
        ("ai2d", "vlmevalkit", 3), ("pope", "vlmevalkit", 2), ("mmmu", "vlmevalkit", 3), ("mmmu", None, 1),
        ("pope", "lmms-eval", 3), ("mlvu", "vlmevalkit", 3), ("mvbench", "vlmevalkit", 4),
        ("videomme", "vlmevalkit", 2), ("videomme_subtitles", "vlmevalkit", 2),
        ("videomme_subtitles", "lmms-eval", 2), ("mmstar", "lmms-eval", 2), ("realworldqa", "lmms-eval", 3),
    ],
)  # fmt: skip
def test_a_run_whose_rule_has_changed_is_not_gone_on_with(load, tmp_path, name, protocol, edition):
    benchmark = copy(load(name))
    registry.ask_by(protocol and protocols.load(protocol), benchmark)
    identity = benchmark_identity(benchmark)
    assert identity.get("edition", 1) == edition
    write_json(tmp_path / "settings.json", identity)
    check_settings(tmp_path, identity)
    older = {key: value for key, value in identity.items() if key != "edition"}
    write_json(tmp_path / "settings.json", older)
    if edition > 1:
        words = rf"another edition of the scoring rule, whose scores do not mix \(1, now {edition}\)"
        with pytest.raises(InputError, match=words):
            check_settings(tmp_path, identity)


def test_every_rule_that_has_changed_is_there():
    assert official.CHANGED.keys() <= official.RULES.keys()


@pytest.mark.parametrize("name", protocols.names())
@pytest.mark.parametrize("key", ["min_pixels", "max_pixels"])
def test_bounds_that_cannot_be_are_named_whatever_the_protocol_has(name, key):
    with pytest.raises(InputError, match=f"{key}=-1"):
        protocols.load(name).sampling(**{key: -1})
