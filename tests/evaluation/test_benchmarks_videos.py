"""Video benchmarks on hand-made data and answers: the prompt as published, clips, and scores worked out by hand."""

from __future__ import annotations

from copy import copy
from pathlib import Path

import benchmark_files
import pytest
from prediction_rows import rows_of
from test_metrics_wups import Small

from ppe_npu.data.sampling import VideoSampling
from ppe_npu.data.videos import load_video
from ppe_npu.evaluation import benchmarks, protocols
from ppe_npu.evaluation.benchmarks.longvideobench import frame_times, interleave
from ppe_npu.evaluation.benchmarks.nextqa import NExTOE
from ppe_npu.evaluation.samples import sampling_of

LETTER = "Answer with the option's letter from the given choices directly."

# name -> (prompt, GT, type) of the first sample.
FIRST = {
    "seedbench_video": ("How many?\nA. One\nB. Two\nC. Three\nD. Four\n" + LETTER, "B", "Action Recognition"),
    "videomme": (
        "Select the best answer to the following multiple-choice question based on the video. Respond with only the "
        "letter (A, B, C, or D) of the correct option.\nWhich is shown?\nA. Apples.\nB. Candles.\nC. Berries.\n"
        "D. All the same.\nThe best answer is:",
        "C", "short",
    ),
    "videomme_subtitles": (
        "This video's subtitles are listed below:\nIt's a berry\nCafé\nSelect the best answer to the following "
        "multiple-choice question based on the video and the subtitles. Respond with only the letter (A, B, C, or D) "
        "of the correct option.\nWhich is shown?\nA. Apples.\nB. Candles.\nC. Berries.\nD. All the same.\n"
        "The best answer is:",
        "C", "short",
    ),
    "nextqa_mc": (
        "what are they doing\nA. sing on stage\nB. sleep\nC. cook dinner\nD. run\nE. swim\n" + LETTER, "C", "TC",
    ),
    "nextqa_oe": ("how many people\nAnswer a question using a short phrase or sentence.", ["two"], "DC"),
    "mvbench": (
        "Carefully watch the video and pay attention to the cause and sequence of events, the detail and movement of "
        "objects, and the action and pose of persons. Based on your observations, select the best option that "
        "accurately addresses the question.\nQuestion: What happens?\nOptions:\n(A) It moves.\n(B) It stays.\n"
        "(C) Both\nOnly give the best option.",
        "B", "action_sequence",
    ),
    "mlvu": (
        "Carefully watch this video and pay attention to every detail. Based on your observations, select the best "
        "option that accurately addresses the question.\nQuestion: Which?\nOptions:\n(A) Red\n(B) Blue\n"
        "Only give the best option.",
        "B", "plotQA",
    ),
    "longvideobench": (
        "<image>\n<image>\nHello there\n<image>\nbetween frames\n<image>\nWho speaks?\nA. He\nB. She\n" + LETTER,
        "B", "15",
    ),
    "egoschema": (
        "What is c doing?\nA. cooking\nB. cleaning\nC. washing the red car\nD. a\nE. b\n" + LETTER, "C", None,
    ),
    "perceptiontest": ("Is the object cold?\nA. Yes\nB. No\nC. Unsure\n" + LETTER, "B", "physics"),
    "activitynetqa": ("Is he smiling? Answer the question using a single word or phrase.", "no", "yes/no"),
}  # fmt: skip

SCORES = [
    # SEED-Bench: the first character
    ("seedbench_video", 0, "B", 1), ("seedbench_video", 0, "b.", 1), ("seedbench_video", 0, "Two", 0),
    ("seedbench_video", 0, "", 0),
    # Video-MME: the first of A to D behind phrases that are taken away
    ("videomme", 0, "C", 1), ("videomme", 0, "The best answer is: C. Berries", 1), ("videomme", 0, "(C)", 1),
    ("videomme", 0, "c", 0), ("videomme", 0, "", 0), ("videomme", 0, "ベリー", 0), ("videomme", 0, "Candles, or C", 1),
    ("videomme", 0, "Best answer: C", 0),  # as published: that phrase stays, and its B comes first
    ("videomme_subtitles", 0, "The answer is C", 1), ("videomme_subtitles", 0, "All", 0),
    # NExT-QA: as MMMU
    ("nextqa_mc", 0, "C", 1), ("nextqa_mc", 0, "C. cook dinner", 1), ("nextqa_mc", 0, "(A), no, (C)", 1),
    ("nextqa_mc", 0, "They are going to cook dinner", 1), ("nextqa_mc", 0, "cook dinner", 0), ("nextqa_mc", 0, "", 0),
    # MVBench and MLVU: the first word's letter
    ("mvbench", 0, "(B) It stays.", 1), ("mvbench", 0, "B", 1), ("mvbench", 0, "b) It stays", 1),
    ("mvbench", 0, "B.", 1),
    ("mvbench", 0, "It stays.", 0), ("mvbench", 0, "The answer is (B)", 0), ("mvbench", 0, "(A)", 0),
    ("mvbench", 0, "", 0), ("mvbench", 0, "(", 0), ("mvbench", 0, ".", 0),  # as published these three would be right
    ("mlvu", 0, "(B", 0), ("mlvu", 0, "B", 1), ("mlvu", 0, "(B) Blue", 1), ("mlvu", 0, "B. Blue", 0),
    ("mlvu", 0, "B) Blue", 1), ("mlvu", 0, "Blue", 0), ("mlvu", 0, "", 0), ("mlvu", 0, "Ⓑ", 0),
    # LongVideoBench: the first of A to E
    ("longvideobench", 0, "B", 1), ("longvideobench", 0, "The answer is (B)", 1),
    ("longvideobench", 0, "Best option: B", 1),
    ("longvideobench", 0, "she", 0), ("longvideobench", 0, "", 0), ("longvideobench", 0, "A, not B", 0),
    # EgoSchema: the earliest
    ("egoschema", 0, "C. washing the red car", 1), ("egoschema", 0, "(C), or maybe (D)", 1),
    ("egoschema", 0, "D or C", 0),
    ("egoschema", 0, "C", 1), ("egoschema", 0, "", 0), ("egoschema", 0, "She is washing the red car now", 0),
    ("egoschema", 0, "I am sure: c. washing the red car", 1),
    # Perception Test: the first capital that is a word
    ("perceptiontest", 0, "B", 1), ("perceptiontest", 0, "Answer: B.", 1), ("perceptiontest", 0, "(B) No", 1),
    ("perceptiontest", 0, "A B", 0), ("perceptiontest", 0, "No", 0), ("perceptiontest", 0, "", 0),
    # ActivityNet-QA
    ("activitynetqa", 0, "No.", 1), ("activitynetqa", 0, "no he isn't", 0), ("activitynetqa", 0, "", 0),
    ("activitynetqa", 1, "Dance!", 1), ("activitynetqa", 1, "dancing", 0),
]  # fmt: skip


@pytest.fixture(scope="module")
def load(tmp_path_factory):
    """load(name) -> the benchmark over its tiny data, each made once; NExT-OE with a taxonomy of a few words."""
    root, loaded = tmp_path_factory.mktemp("data"), {}

    def get(name):
        if name not in loaded:
            benchmark_files.write_all(root, name)
            loaded[name] = NExTOE(root, Small()) if name == "nextqa_oe" else benchmarks.load(name, root)
        return loaded[name]

    return get


@pytest.mark.parametrize("name", FIRST)
def test_prompt_truth_and_type(load, name):
    sample = load(name)[0]
    assert (sample["prompt"], sample["GT"], sample.get("type")) == FIRST[name]


@pytest.mark.parametrize(("name", "number", "answer", "score"), SCORES)
def test_scores(load, name, number, answer, score):
    benchmark = load(name)
    assert benchmark.score(answer, benchmark[number]) == score


# The name of each task of mvbench.ipynb, whether it asks about a clip, and the folder of its videos.
MVBENCH = """
    action_sequence clip star/Charades_v1_480
    action_prediction clip star/Charades_v1_480
    action_antonym whole ssv2_video
    fine_grained_action whole Moments_in_Time_Raw/videos
    unexpected_action whole FunQA_test/test
    object_existence whole clevrer/video_validation
    object_interaction clip star/Charades_v1_480
    object_shuffle whole perception/videos
    moving_direction whole clevrer/video_validation
    action_localization clip sta/sta_video
    scene_transition whole scene_qa/video
    action_count whole perception/videos
    moving_count whole clevrer/video_validation
    moving_attribute whole clevrer/video_validation
    state_change whole perception/videos
    fine_grained_pose whole nturgbd
    character_order whole perception/videos
    egocentric_navigation whole vlnqa
    episodic_reasoning clip tvqa/frames_fps3_hq
    counterfactual_inference whole clevrer/video_validation
"""


def test_mvbench_has_twenty_tasks_five_with_clips_one_of_frames(load):
    benchmark = load("mvbench")
    tasks = [line.split() for line in MVBENCH.split("\n") if line.strip()]
    assert [sample["type"] for sample in benchmark] == [task for task, _, _ in tasks]
    for sample, (task, clip, folder) in zip(benchmark, tasks, strict=True):
        bounds = {"start": 1.0, "end": 3.0} if clip == "clip" else {}
        rate = 3.0 if task == "episodic_reasoning" else None
        assert sample["sampling"] == VideoSampling(nframes=16, middles=True, frame_rate=rate, **bounds), task
        assert Path(sample["video_path"]).parent == benchmark.root / "video" / folder


@pytest.mark.parametrize(
    ("name", "taken"),
    [("checkpoint", [3, 3, 4, 4, 5, 5, 5, 6, 6, 6, 7, 7, 7, 8, 8, 9]), ("lmms-eval", [3, 4, 5, 7, 8, 9])],
)
def test_mvbenchs_frames_are_the_protocols_where_it_says_which(load, name, taken):
    """At 3 frames per second, the clip from 1 to 3 s has seven frames; lmms-eval takes an even number of them."""
    benchmark, protocol = copy(load("mvbench")), protocols.load(name)
    benchmark.use(protocol)
    asked = sampling_of({"sampling": VideoSampling(middles=benchmark.middles, nframes=16, start=1, end=3)}, None)
    asked = protocol.sampling().within(asked) if protocol.video else asked
    assert asked.indices(40, 3.0, 2)[0] == taken


def test_mvbench_takes_the_middles_of_equal_parts_of_the_clip(load):
    """From 1 to 3 s at 3 frames per second: frames 3 to 9, whose brightness tells their numbers. 16 of seven frames
    repeat some; of four segments of 1.5 frames, the published rounding takes 3, 5, 6 and 7."""
    sample = next(sample for sample in load("mvbench") if sample["type"] == "episodic_reasoning")

    def shown(asked):
        video = load_video(sample["video_path"], sampling_of(sample, asked))
        return video.fps, [round(shade / 20) for shade in video.frames[:, 0].float().mean((1, 2)).tolist()]

    sixteen = [3, 3, 4, 4, 5, 5, 5, 6, 6, 6, 7, 7, 7, 8, 8, 9]  # int(3 + 3 / 16 + round(n * 6 / 16)), halves to even
    assert shown(VideoSampling()) == (pytest.approx(16 / 7 * 3), sixteen)
    assert shown(VideoSampling(nframes=4)) == (pytest.approx(4 / 7 * 3), [3, 5, 6, 7])


@pytest.mark.parametrize(
    ("frames", "start", "end", "taken"),
    [
        (40, 9.14, 66.43, [27, 28, 29, 29, 30, 31, 31, 32, 33, 34, 35, 35, 36, 37, 37, 38]),
        (305, 1.3575, 2.5267, [4, 4, 4, 5, 5, 5, 6, 6, 6, 6, 6, 7, 7, 7, 8, 8]),
    ],
)
def test_clips_of_mvbench_shorter_than_sixteen_frames_show_some_again(frames, start, end, taken):
    """As get_index in mvbench.ipynb computes it, at 3 frames per second."""
    assert VideoSampling(nframes=16, middles=True, start=start, end=end).indices(frames, 3.0, 2)[0] == taken


def test_segments_of_seedbench_are_seconds_or_frames_of_15_per_second(load):
    samples = list(load("seedbench_video"))
    assert "sampling" not in samples[0]
    assert [(s["sampling"].start, s["sampling"].end) for s in samples[1:]] == [(1.0, 3.0), (1.0, 3.0)]
    assert [sample["GT"] for sample in samples] == ["B", "C", "D"]


def test_videomme_per_duration_and_of_what_was_answered(load):
    benchmark = load("videomme")
    assert [sample["video_path"][-4:] for sample in benchmark] == [".mp4", ".mkv"]
    assert benchmark.metrics(rows_of(benchmark, "C", "none")) == {"short": 1.0, "long": 0.0, "of answered": 1.0}
    assert "No subtitles available" in load("videomme_subtitles")[1]["prompt"]


def test_nextqa_groups(load):
    benchmark = load("nextqa_mc")
    assert benchmark.metrics(rows_of(benchmark, "C", "B")) == {"temporal": 1.0, "causal": 0.0}
    assert benchmark[0]["video_path"].endswith("NExTVideo/1164/4010069381.mp4")


def test_nextqa_open_answers(load):
    """In Small's taxonomy, run and chase are 0.8 alike, cat and dog 0.5. The second question has two references."""
    benchmark = load("nextqa_oe")
    assert benchmark[1]["GT"] == ["run to the cat", "chase the cat"]
    assert benchmark[1]["type"] == "TN"
    assert benchmark.score("chase the dog", benchmark[1]) == pytest.approx(0.5)  # chase = 1, dog ~ cat = 0.5
    found = benchmark.metrics(rows_of(benchmark, "the two", "chase the dog"))
    assert found["WUPS@0"] == pytest.approx((1 + 0.5) / 2)
    assert found["WUPS@0.9"] == pytest.approx((1 + 0.05) / 2)
    assert (found["WUPS@0 descriptive"], found["WUPS@0 temporal"]) == (1.0, 0.5)


def test_mlvu_averages_over_tasks(load):
    benchmark = load("mlvu")
    found = benchmark.metrics(rows_of(benchmark, "B", "A", "B", "A", "A", "A", "A"))
    assert (found["M-Avg"], found["plotQA"], found["needle"]) == (pytest.approx(2 / 7), 1.0, 0.0)
    uneven = rows_of(benchmark, "B", "A") + rows_of(benchmark, "B")
    assert benchmark.metrics(uneven)["M-Avg"] == 0.5


def test_longvideobench_frames_lie_at_their_times(load):
    """One frame per second of a video with 3 frames per second, whose frame i has brightness 20 + 10 i."""
    frames = load("longvideobench")[0]["image"]
    assert {frame.size for frame in frames} == {(28, 28)}
    images = [frame.load() for frame in frames]
    assert [round(image.getpixel((14, 14))[0] / 10) for image in images] == [2, 5, 8, 11]


def test_at_most_sixteen_frames():
    assert frame_times(4.0) == [0, 1, 2, 3]
    assert frame_times(0.4) == [0]
    assert frame_times(16.0) == list(range(16))
    assert frame_times(32.0) == list(range(0, 32, 2))


@pytest.mark.parametrize(
    ("subtitles", "lines"),
    [
        ([], "F F F"),
        ([{"timestamp": [0.5, 1.5], "text": "a"}], "F F a F"),  # its middle is 1: frames 0 and 1 come before it
        ([{"timestamp": [0.5, 0.9], "text": "a"}], "F F F"),  # 0.2 to 1.2 covers frame 1 ...
        ([{"timestamp": [9.0, 9.9], "text": "a"}], "F F F"),  # after all frames: left out
        ([{"timestamp": [0.5, None], "text": "a"}], "F F a F"),  # without an end, the video's end counts
        ([{"start": "00:00:01.500", "end": "00:00:02.700", "line": "ü"}], "F F F ü"),
    ],
)
def test_subtitles_stand_between_frames(subtitles, lines):
    expected = lines.replace("F F F", "F a F F") if subtitles and subtitles[0].get("timestamp") == [0.5, 0.9] else lines
    assert interleave([0.0, 1.0, 2.0], subtitles, 0.0, 3.0).replace("<image>", "F").split() == expected.split()


def test_egoschema_asks_what_has_a_public_answer(load):
    assert [sample["index"] for sample in load("egoschema")] == ["0074f7"]


def test_activitynet_types_and_free_questions(load):
    benchmark = load("activitynetqa")
    assert [sample["type"] for sample in benchmark] == ["yes/no", "temporal"]
    assert benchmark.metrics(rows_of(benchmark, "no", "x")) == {"free": 1.0}
