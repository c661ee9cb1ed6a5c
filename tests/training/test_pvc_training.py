"""PVC through `ppe-npu train`: InternVL's tiles, images shown repeatedly, drawn numbers of frames, a recipe."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from families import supported
from tolerances import assert_equal, assert_near

from ppe_npu import CompressionConfig
from ppe_npu.checkpoints.loading import load_model, load_processor
from ppe_npu.data.inputs import VideoSampling, build_inputs
from ppe_npu.data.sampling import Drawn
from ppe_npu.data.tiles import frame_ids
from ppe_npu.data.videos import load_video, planned_video, video_header
from ppe_npu.demo import clips, motion
from ppe_npu.errors import InputError
from ppe_npu.models import compress
from ppe_npu.models.pvc import PVCConfig, add_pvc, load_pvc
from ppe_npu.training.args import TrainConfig
from ppe_npu.training.collator import Collator
from ppe_npu.training.data import read_records
from ppe_npu.training.recipes import load_recipe
from ppe_npu.training.survey import survey
from ppe_npu.training.trainer import train

pytestmark = supported
DENSE = CompressionConfig.preset("dense")
SMALL = PVCConfig(blocks=2, time_width=16, showings=3)


@pytest.fixture(scope="module")
def internvl(tmp_path_factory):
    """(the folder of a tiny InternVL, a file of records of clips and pictures)."""
    import tiny_internvl

    root = tmp_path_factory.mktemp("internvl")
    return tiny_internvl.save(root / "model"), tiny_internvl.write_records(root / "data")


def collated(internvl, sampling=None, pvc=True, config=DENSE):
    model, processor = load_model(internvl[0], tiled=True), load_processor(internvl[0])
    model = compress(add_pvc(model, SMALL) if pvc else model, config)
    collator = Collator(processor, model.compression.vision, sampling, shown_by=model.config if pvc else None)
    batch = collator(read_records(internvl[1]))
    return model, {name: value for name, value in batch.items() if name not in ("sample_ids", "skipped")}


def test_internvl_inputs_are_its_processors_own(internvl):
    processor = load_processor(internvl[0])
    records = read_records(internvl[1])[:4]
    found = build_inputs(processor, [record.messages()[:1] for record in records])
    texts = [
        processor.apply_chat_template(r.messages()[:1], tokenize=False, add_generation_prompt=True) for r in records
    ]
    from ppe_npu.data.pictures import load_image

    images = [load_image(path) for record in records for path in record.images]
    videos = [load_video(path, multiple=1).frames for record in records for path in record.videos]
    own = processor(text=texts, images=images, videos=videos, padding=True, return_tensors="pt", do_sample_frames=False)
    assert_equal(found["input_ids"][found["attention_mask"] == 1], own["input_ids"][own["attention_mask"] == 1])
    assert_equal(found["pixel_values"], own["pixel_values"])
    assert found["num_frames"] == [8, 1, 8, 1]


def test_every_picture_is_shown_and_every_length_foretold(internvl):
    sampling = VideoSampling(nframes=4)
    model, batch = collated(internvl, sampling)
    assert batch["time_steps"] == [(4, 1), (3, 3)] * 3  # a picture of 40 x 20 pixels is two tiles and a thumbnail
    assert len(batch["pixel_values"]) == 3 * (4 + 9)
    processor = load_processor(internvl[0])
    counted = survey(read_records(internvl[1]), processor, DENSE, sampling, showings=3)
    assert counted.before.tolist() == batch["attention_mask"].sum(1).tolist()
    image = processor.image_token_id
    assert counted.visual_before.tolist() == (batch["input_ids"] == image).sum(1).tolist()
    assert counted.answers.tolist() == (batch["labels"] != -100).sum(1).tolist()
    ppe = CompressionConfig.preset("ppe", k=4)
    model = compress(model, ppe)
    model(**batch)
    kept = survey(read_records(internvl[1]), processor, ppe, sampling, showings=3).visual_after
    assert kept.sum() == model.compression.report.tokens_after


def test_new_modules_change_no_loss(internvl):
    (base, plain), (model, batch) = (collated(internvl, VideoSampling(nframes=4), pvc) for pvc in (False, True))
    videos = [0, 2, 4]  # whose prompts are the same in both batches
    for inputs in (plain, batch):
        labels = inputs["labels"]
        inputs["labels"] = torch.full_like(labels, -100)
        inputs["labels"][videos] = labels[videos]
    with torch.no_grad():
        expected, found = base(**plain).loss, model(**batch).loss
    assert abs(float(expected - found)) <= 64 * torch.finfo(torch.float32).eps * float(expected)


def settings(internvl, output, **more):
    recipe = load_recipe("pvc_internvl")
    own = {"model": str(internvl[0]), "data": str(internvl[1]), "output": str(output), "device": "cpu"}
    small = {"dtype": "fp32", "deepspeed": None, "pvc": SMALL.as_dict(), "video_frames": (2, 6), "global_batch": None}
    small |= {"max_steps": 12, "batch_size": 3, "learning_rate": 5e-3, "warmup_steps": 1, "schedule": "constant"}
    small |= {"vision_learning_rate": 5e-3, "pvc_learning_rate": 2e-2, "merger_learning_rate": 5e-3, "num_workers": 0}
    small |= {"save_steps": 5, "logging_steps": 1, "tensorboard": False, "gradient_checkpointing": False}
    return TrainConfig(**recipe | own | small | more)


def test_fewer_tokens_of_a_tile_are_the_processors_too(internvl, tmp_path):
    """With a shuffle of 4, a tile of 4 x 4 patches has one token, not four, in batches and in the saved processor."""
    coarse = PVCConfig(blocks=1, time_width=16, showings=2, internvl_shuffle=4)
    more = {"max_steps": 2, "save_steps": 9, "compression": CompressionConfig.preset("ppe", k=4)}
    final = train(settings(internvl, tmp_path / "run", pvc=coarse.as_dict(), **more), announce=False).final
    model, processor = load_model(final, tiled=True), load_processor(final)
    assert processor.image_seq_length == model.config.image_seq_length == 1
    record = read_records(internvl[1])[1]
    batch = Collator(processor, compress(model, DENSE).compression.vision, None, shown_by=model.config)([record])
    assert int((batch["input_ids"] == processor.image_token_id).sum()) == 2 * 3  # two tiles and a thumbnail, twice
    again = settings(internvl, tmp_path / "again", model=str(final), pvc=None, **more)
    assert len(train(again, announce=False).losses) == 2


@pytest.mark.ci
def test_a_recipe_trains_it_and_a_resumed_run_is_the_same(internvl, tmp_path):
    result = train(settings(internvl, tmp_path / "whole"), announce=False)
    losses = [loss for _, loss in result.losses]
    assert sum(losses[-3:]) < 0.8 * sum(losses[:3])
    trained, state = load_pvc(result.final), {}
    state = trained.state_dict()
    gates = [name for name in state if name.endswith("temporal.gate")]
    assert len(gates) == 2
    assert all(state[name].abs().max() > 0 for name in gates)
    config = json.loads((Path(result.final) / "config.json").read_text())
    assert config["pvc"] == SMALL.as_dict()
    cut = settings(internvl, tmp_path / "cut", max_steps=12)
    with pytest.raises(KeyboardInterrupt):
        _train_until(cut, 7)
    resumed = train(settings(internvl, tmp_path / "cut", resume=True), announce=False)
    assert resumed.losses[-7:] == result.losses[-7:]
    again = load_pvc(resumed.final).state_dict()
    assert all(torch.equal(again[name], state[name]) for name in state)


def _train_until(config, step):
    from ppe_npu.training import loop

    before = loop.CompressedTrainer.training_step

    def stopping(self, *args, **kwargs):
        if self.state.global_step == step:
            raise KeyboardInterrupt
        return before(self, *args, **kwargs)

    loop.CompressedTrainer.training_step = stopping
    try:
        train(config, announce=False)
    finally:
        loop.CompressedTrainer.training_step = before


def test_drawn_frames_are_within_bounds_and_the_same_wherever_a_video_lies(tmp_path, monkeypatch):
    film = clips.make_clip(__import__("numpy").random.default_rng(0)).pixels(4)
    sampling = Drawn.of(VideoSampling(max_pixels=99), (2, 6), seed=3)
    counts = []
    (tmp_path / "link").symlink_to(tmp_path / "clips")
    for number in range(12):
        file = tmp_path / "clips" / f"{number}.mov"
        file.parent.mkdir(exist_ok=True)
        clips.write_clip(file, film)
        counts.append(len(load_video(file, sampling, 1).frames))
        assert len(planned_video(video_header(file), file, sampling, 1).frames) == counts[-1]
        monkeypatch.chdir(file.parent)
        places = ("/elsewhere/clips/", "", "../clips/", "x/../", "../link/", f"{tmp_path}/link/")
        for path in (f"{place}{number}.mov" for place in places):
            assert sampling.of_video(path) == sampling.of_video(file)
    assert set(counts) <= set(range(2, 7))
    assert len(set(counts)) > 2
    assert sampling.of_video("a").max_pixels == 99
    other = Drawn.of(VideoSampling(), (2, 6), seed=4)
    assert [other.of_video(f"clips/{n}.mov").nframes for n in range(12)] != counts


def test_a_folder_of_frames_draws_the_same_by_whichever_name_it_is_given(tmp_path):
    sampling = Drawn.of(VideoSampling(), (2, 999), seed=3)
    (tmp_path / "videos" / "cat").mkdir(parents=True)
    (tmp_path / "linked").symlink_to(tmp_path / "videos" / "cat")
    (tmp_path / "set").symlink_to("videos")
    own = sampling.of_video(tmp_path / "videos" / "cat")
    for path in ("linked", "linked/", "set/cat", "videos/../set/cat/", "videos/cat/."):
        assert sampling.of_video(f"{tmp_path}/{path}") == own


def test_what_cannot_be_is_said_first(internvl, tmp_path):
    with pytest.raises(InputError, match="give the fewest frames, then the most"):
        settings(internvl, tmp_path, video_frames=(9, 3))
    with pytest.raises(InputError, match="pvc and adapter exclude each other"):
        settings(internvl, tmp_path, adapter="lora")
    with pytest.raises(InputError, match="tiles of one size"):
        load_processor(internvl[0], min_pixels=4)


def test_frames_are_lines(internvl):
    processor = load_processor(internvl[0])
    text = processor.tokenizer.decode(frame_ids(processor, 2)).split()
    assert [word for word in text if "Frame" in word] == ["Frame1:", "Frame2:"]


def test_on_qwen2_5_vl_pictures_become_videos_in_their_places(internvl):
    """In a batch of both, pixels, grids and seconds follow the prompts' order; the survey predicts the lengths."""
    from ppe_npu.data.inputs import process_visuals
    from ppe_npu.demo import tiny

    vocabulary = tiny.vocabulary_of(clips.WORDS)
    processor = tiny.build_processor(vocabulary, motion.SMALL.side, temporal_patch_size=1)
    model = tiny.build_model(0, vocabulary, temporal_patch_size=1, tokens_per_second=clips.RATE)
    model = compress(add_pvc(model, PVCConfig(blocks=1, time_width=16, showings=3)), DENSE)
    records = read_records(internvl[1])
    sampling = VideoSampling(nframes=4)
    batch = Collator(processor, model.compression.vision, sampling, shown_by=model.config)(records)
    assert "pixel_values" not in batch
    grids = batch["video_grid_thw"].tolist()
    assert [grid[0] for grid in grids] == [4, 3] * 3
    parts = batch["pixel_values_videos"].split(batch["video_grid_thw"].prod(-1).tolist())
    for record, part in zip(records, parts):
        visuals, _ = process_visuals(processor, record.images, record.videos, sampling)
        own = visuals["pixel_values"].repeat(3, 1) if record.images else visuals["pixel_values_videos"]
        assert_equal(part, own)
    assert batch["second_per_grid_ts"].tolist()[1::2] == [1.0] * 3
    counted = survey(records, processor, DENSE, sampling, showings=3)
    assert counted.before.tolist() == batch["attention_mask"].sum(1).tolist()
    inputs = {name: value for name, value in batch.items() if name not in ("sample_ids", "skipped")}
    alone = Collator(processor, model.compression.vision, sampling, shown_by=model.config)(records[1:2])
    alone = {name: value for name, value in alone.items() if name not in ("sample_ids", "skipped")}
    with torch.no_grad():
        together, single = model(**inputs).logits[1], model(**alone).logits[0]
    assert_near(together[: len(single)], single, roundings=200, size=float(single.abs().max()))
