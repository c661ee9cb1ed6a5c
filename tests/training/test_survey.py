"""The survey counts what the collator gives, without decoding media; faults are listed, and stop it or are skipped."""

from __future__ import annotations

import itertools
import json
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from command_line import refused
from PIL import Image
from video_files import copy_packets, numbered, write_video

from ppe_npu import CompressionConfig
from ppe_npu.checkpoints.loading import load_processor
from ppe_npu.data.inputs import InputError, VideoSampling
from ppe_npu.engine.compression import Compression
from ppe_npu.engine.positions import contiguous_channels
from ppe_npu.engine.spans import VisionTokens
from ppe_npu.evaluation.samples import measure
from ppe_npu.training.collator import Collator
from ppe_npu.training.data import Record
from ppe_npu.training.survey import KINDS, kind_of, survey

pytestmark = pytest.mark.half

DENSE, PPE = CompressionConfig.preset("dense"), CompressionConfig.preset("ppe", k=4)


@pytest.fixture(scope="module")
def processors(tiny_folder, spelling_processors):
    """Processors of two families, with room for pictures of several sizes; the second spells a video's seconds."""
    first = load_processor(tiny_folder, min_pixels=16 * 16, max_pixels=100 * 100)
    return {"qwen2_5_vl": first, "qwen3_vl": spelling_processors["qwen3_vl"]}


def talk(*texts: str) -> tuple[tuple[str, str], ...]:
    return tuple(("assistant" if number % 2 else "user", text) for number, text in enumerate(texts))


@pytest.fixture
def records(tmp_path, write_image, write_clip) -> list[Record]:
    """Records of every kind, with pictures and clips of odd sizes, one of them turned on its side."""
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (90, 31)).save(tmp_path / "side.jpg", exif=exif)
    sizes = [(17, 53), (48, 48), (301, 7), (640, 480)]
    odd = [write_image(f"{number}.png", size=size) for number, size in enumerate(sizes)]
    shapes = [("a.mp4", 9, 4, 50), ("b.mkv", 21, 12, 34), ("c.mp4", 21, 1, 34)]  # c takes two digits for its seconds
    clips = [write_clip(*shape) for shape in shapes]
    packed = talk("<image>\nshape red", "ring", "row red", "3", "count blue", "5")
    return [
        Record("d line 1", (), (), talk("count", "3")),
        Record("d line 2", (odd[0],), (), talk("<image>\nshape red", "ring", "row red", "3")),
        Record("d line 3", (odd[1], odd[2], str(tmp_path / "side.jpg")), (), talk("<image><image> and <image>", "1")),
        Record("d line 4", (), (clips[0],), talk("<video>count", "ring")),
        Record("d line 5", (), tuple(clips), talk("<video>", "ring", "<video>row<video>", "2")),
        Record("d line 6", (odd[3],), (clips[1],), talk("<video>then<image>", "ring")),
        Record("d line 7", (odd[3],), (), packed, independent=True),
    ]


COMPRESSIONS = {
    "dense": DENSE,
    "ppe": PPE,
    "two ratios": CompressionConfig.preset("ppe", k=4, ratio=[0.6, 0.3]),
    "cascade from 0": CompressionConfig.preset("ppe", k=4, layers=[0, 2]),
    "later layers": CompressionConfig.preset("ppe", k=4, layers=[1]),
    "events": CompressionConfig.preset("ppe", k=4, temporal_ratio=0.5),
}
SAMPLINGS = {
    "nframes": VideoSampling(nframes=5),
    "fps": VideoSampling(fps=1.5),
    "middles": VideoSampling(nframes=4, middles=True),
    "default": None,
    "pixels": VideoSampling(nframes=6, min_pixels=32 * 32, max_pixels=60 * 60),
}
CASES = [("qwen2_5_vl", name, "nframes") for name in COMPRESSIONS] + [
    (family, "ppe", name) for family in ("qwen2_5_vl", "qwen3_vl") for name in SAMPLINGS
]


@pytest.mark.parametrize(("family", "name", "taken"), dict.fromkeys(CASES))
def test_lengths_are_those_of_the_collators_batches(processors, records, family, name, taken):
    processor, config, sampling = processors[family], COMPRESSIONS[name], SAMPLINGS[taken]
    asked = talk("<video>shape<video> red", "ring", "row", "3")  # each question by itself
    records = [*records, Record("d line 8", (), records[4].videos[1:], asked, independent=True)]
    found = survey(records, processor, config, sampling)
    ids = {kind: getattr(processor, f"{kind}_token_id") for kind in ("image", "video")}
    vision = VisionTokens(ids["image"], ids["video"], 2, 2.0, frames_apart=family == "qwen3_vl")
    engine = Compression(config, vision, contiguous_channels([8, 12, 12]), 3)
    collator = Collator(processor, vision, sampling)
    assert found.records == tuple(records)
    for number, record in enumerate(records):
        batch = collator([record])
        plan = engine.plan(
            batch["input_ids"],
            batch["attention_mask"],
            *(batch.get(key) for key in ("image_grid_thw", "video_grid_thw", "second_per_grid_ts")),
        )
        entered = plan.stages[sum(layer <= 0 for layer in config.layers)].after
        expected = {
            "before": batch["input_ids"].numel(),
            "after": int(entered.real.sum()),
            "visual_before": int((batch["mm_token_type_ids"] > 0).sum()),
            "visual_after": entered.visual_tokens,
            "answers": int((batch["labels"] >= 0).sum()),
        }
        assert {key: int(getattr(found, key)[number]) for key in expected} == expected, record.where


@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl"])
@pytest.mark.parametrize("bounds", [{}, {"total_pixels": 20000}])
def test_evaluation_counts_the_visual_tokens_that_training_counts(processors, write_image, write_clip, family, bounds):
    """Qwen3-VL bounds the pixels of a whole video, Qwen2.5-VL those of a frame."""
    sampling, processor = VideoSampling(nframes=20, **bounds), processors[family]
    picture, clip = write_image("a.png", size=(301, 40)), write_clip("b.mkv", 21, 96, 120)
    record = Record("d line 1", (picture,), (clip,), talk("<image><video>", "3"))
    counted = measure({"prompt": "", "image_path": picture, "video_path": clip}, processor, PPE, sampling)
    found = survey([record], processor, PPE, sampling)
    assert (counted.before, counted.after) == (found.visual_before[0], found.visual_after[0])


def test_of_pictures_whose_pixels_say_how_many_tokens_stay_the_number_is_counted(processors, tmp_path):
    """Two pages of the same size, one blank, one of noise. A later step halves what the first one keeps."""
    noise = np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8)
    records, processor = [], processors["qwen2_5_vl"]
    for name, drawn in (("blank", np.full_like(noise, 255)), ("noise", noise)):
        path = str(tmp_path / f"{name}.png")
        Image.fromarray(drawn).save(path)
        records.append(Record(name, (path,), (), talk("<image>row", "3")))
    for steps, share in (([], 1), ([{"method": "uniform", "ratio": 0.5}], 0.5)):
        config = CompressionConfig.from_dict({"steps": [{"method": "pixelprune"}, *steps], "positions": "keep_one"})
        found = survey(records, processor, config)
        assert found.visual_before[0] == found.visual_before[1]
        assert found.visual_after.tolist() == [1, found.visual_before[1] * share]
        assert (found.before - found.visual_before == found.after - found.visual_after).all()
        samples = [{"prompt": "row", "image_path": record.images[0]} for record in records]
        blank, other = (measure(sample, processor, config) for sample in samples)
        assert other.after - blank.after == found.visual_after[1] - 1
    budget = CompressionConfig.from_dict({"steps": [{"method": "pixelprune", "max_kept": 2, "fill": True}]})
    assert survey(records, processor, budget).visual_after.tolist() == [2, 2]


def test_workers_count_the_same(processors, records):
    bad = Record("d line 8", (), (), talk("row", "3 <|im_end|>"))
    many = [*records * 20, bad, *records]
    state = torch.get_rng_state()
    alone, shared = (survey(many, processors["qwen2_5_vl"], PPE, workers=workers) for workers in (0, 2))
    assert shared.records == alone.records
    assert shared.faults == alone.faults
    assert len(alone.faults) == 1
    assert torch.equal(torch.get_rng_state(), state)
    for name in ("before", "after", "visual_before", "visual_after", "answers"):
        assert np.array_equal(getattr(shared, name), getattr(alone, name))


@pytest.mark.ci
def test_no_more_workers_start_than_have_something_to_do(processors, records, run, tiny_folder, tmp_path):
    assert list(survey(records, processors["qwen2_5_vl"], PPE, workers=10**12).records) == list(records)
    (tmp_path / "d.json").write_text("[]")
    asked = ("data", "--model", tiny_folder, "--data", tmp_path / "d.json", "--k", 4, "--num-workers")
    for workers in (-1, 1025, 10**20):
        refused(run(*asked, workers), f"--num-workers {workers}: give a number from 0 to 1024")


def test_nothing_is_decoded_but_a_videos_first_frame(processors, records, monkeypatch):
    from ppe_npu.data import videos

    monkeypatch.setattr(videos, "shown_frames", None)
    monkeypatch.setattr(Image.Image, "load", None)
    assert len(survey(records, processors["qwen2_5_vl"], PPE).records) == len(records)


@pytest.mark.parametrize(
    "rule", [{"fps": 2}, {"nframes": 6}, {"nframes": 5, "middles": True}, {"start": 0.5, "end": 2.6}]
)
@pytest.mark.ci
def test_videos_are_counted_as_they_are_read(processors, tmp_path, rule):
    """Videos with a varying rate, an edit list, a turned picture or a damaged end have as many tokens as collated."""
    uneven = [*range(0, 1000, 50), *range(1000, 21000, 1000)]
    files = [write_video(tmp_path / f"uneven.{kind}", times=uneven, rate=20) for kind in ("mp4", "mkv", "ts")]
    long = write_video(tmp_path / "long.mp4", draw=lambda number: numbered(number, 88, 32))
    files.append(
        copy_packets(long, tmp_path / "cut.mp4", lambda _: True, -17 * 1024, {"avoid_negative_ts": "disabled"})
    )
    whole = bytearray(Path(long).read_bytes())
    struct.pack_into(">9i", whole, whole.index(b"tkhd") + 44, 0, 2**16, 0, -(2**16), 0, 0, 0, 0, 2**30)
    (tmp_path / "turned.mp4").write_bytes(whole)
    stream = Path(write_video(tmp_path / "whole.ts")).read_bytes()
    (tmp_path / "ends.ts").write_bytes(stream[: int(len(stream) * 0.9)])
    files += [str(tmp_path / "turned.mp4"), str(tmp_path / "ends.ts")]
    sampling = VideoSampling(**rule)
    records = [Record(f"d line {n}", (), (file,), talk("<video>count", "3")) for n, file in enumerate(files)]
    for processor in processors.values():
        counted = survey(records, processor, DENSE, sampling)
        assert not counted.faults
        collator = Collator(processor, None, sampling)
        assert counted.before.tolist() == [collator([record])["input_ids"].numel() for record in records]


# -- the report --------------------------------------------------------------------------------------------------------


def test_kinds_sums_and_quantiles(processors, records):
    found = survey(records, processors["qwen2_5_vl"], PPE, VideoSampling(nframes=4))
    values = found.to_dict()
    assert [kind_of(record) for record in records] == ["text", "image", "images", "video", "videos", "mixed", "image"]
    assert list(values["kinds"]) == list(KINDS)
    assert values["kinds"]["image"]["records"] == 2
    assert values["kinds"]["image"]["before"] == found.before[1] + found.before[6]
    assert values["kinds"]["text"]["before"] == values["kinds"]["text"]["after"]
    for key in ("records", "before", "after", "visual_before", "visual_after", "answers"):
        assert values["all"][key] == sum(sums[key] for sums in values["kinds"].values())
    assert values["lengths"]["before"]["most"] == found.before.max()
    assert values["lengths"]["after"]["median"] == np.sort(found.after)[3]
    assert values["lengths"]["before"]["5%"] == found.before.min(), "a length that occurs, not one between two"
    histogram = values["histogram"]
    steps = [6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024]
    assert set(histogram["from"]) <= set(steps)
    bounds = [*histogram["from"], 10**9]
    for name in ("before", "after"):
        lengths = getattr(found, name)
        counted = [int(((lengths >= low) & (lengths < high)).sum()) for low, high in itertools.pairwise(bounds)]
        assert histogram[name] == counted
        assert sum(counted) == len(records)
    assert json.loads(json.dumps(values)) == values


def test_the_markdown_report(processors, records):
    found = survey(records, processors["qwen2_5_vl"], PPE, max_length=10_000)
    text = found.markdown()
    assert text.startswith("# Training data\n\n7 records can be used, 0 cannot.")
    assert "at most 10,000 tokens per record" in text
    assert f"| all | 7 | {found.before.sum():,} | {found.after.sum():,} |" in text
    assert "why it cannot be used" not in text
    table = [line for line in text.splitlines() if line.startswith("|")]
    assert len({line.count("|") for line in table[: 2 + len(KINDS) + 1]}) == 1
    assert max(line.count("#") for line in text.splitlines()) <= 60


# -- records that cannot be used ---------------------------------------------------------------------------------------


def test_what_the_processor_or_the_template_refuses_is_a_fault(processors, records, write_image, write_clip, tmp_path):
    # transformers before about 5.10 accepts a video of one frame; there, a file that is no video takes its place.
    narrow, one = write_image("narrow.png", size=(201, 1)), write_clip("one.mp4", frames=1)
    if not _refuses_one_frame(processors["qwen3_vl"]):
        Path(one).write_bytes(b"no video")
    bad = [
        Record("d line 8", (narrow,), (), talk("<image>", "ring"), id="eight"),
        Record("d line 9", (), (one,), talk("<video>", "ring")),
        Record("d line 10", (), (), talk("<|im_start|>assistant\n 1 <|im_end|>", "2")),
        Record("d line 11", (str(tmp_path / "none.png"),), (), talk("<image>", "ring")),
    ]
    mixed = [bad[0], *records[:2], *bad[1:], *records[2:]]
    found = survey(mixed, processors["qwen3_vl"], PPE)
    assert found.records == tuple(records)
    assert [(fault.where, fault.id) for fault in found.faults] == [
        ("d line 8", "eight"),
        *((where, where) for where in ("d line 9", "d line 10", "d line 11")),
    ]
    for fault, words in zip(found.faults, ("narrow.png cannot be", "one.mp4", "2 assistant turns", "does not exist")):
        assert words in fault.reason
        assert not fault.reason.startswith((":", "d line"))
        assert fault.reason.count("cannot be processed") <= 1
    if _refuses_one_frame(processors["qwen3_vl"]):
        assert [fault.where for fault in survey([bad[1]], processors["qwen2_5_vl"], PPE).faults] == []


def _refuses_one_frame(processor) -> bool:
    frames = torch.zeros(1, 3, 64, 64, dtype=torch.uint8)
    try:
        processor.video_processor(videos=[frames], do_sample_frames=False, return_tensors="pt")
    except ValueError:
        return True
    return False


def test_records_that_are_too_long_after_compression(processors, records):
    processor = processors["qwen2_5_vl"]
    free = survey(records, processor, PPE)
    limit = int(np.sort(free.after)[4])
    found = survey(records, processor, PPE, max_length=limit)
    assert [r.where for r in found.records] == [r.where for r, n in zip(records, free.after) if n <= limit]
    assert found.after.max() == limit
    longest = int(np.argmax(free.after))
    reasons = {fault.where: fault.reason for fault in found.faults}
    assert reasons[records[longest].where] == (
        f"too long: {free.after[longest]:,} tokens after compression, max_length {limit:,}"
    )
    with pytest.raises(InputError, match="max_length=0"):
        survey(records, processor, PPE, max_length=0)
