"""Batches of records of all kinds together, and of records whose files break while an epoch runs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tolerances import assert_equal, loss_near
from torch.utils.data import DataLoader

from ppe_npu.checkpoints.loading import load_model
from ppe_npu.config import CompressionConfig
from ppe_npu.data.inputs import InputError, VideoSampling
from ppe_npu.models import compress
from ppe_npu.training.collator import IGNORED, NOTES, Collator
from ppe_npu.training.data import ChatDataset, Record

SAMPLING = VideoSampling(nframes=4)


def talk(*texts: str) -> tuple[tuple[str, str], ...]:
    return tuple(("assistant" if number % 2 else "user", text) for number, text in enumerate(texts))


def picture(path: str, number: int = 1) -> Record:
    return Record(f"d.jsonl line {number}", (path,), (), talk("<image>\nshape red", "ring"), id=f"r{number}")


@pytest.fixture
def model(tiny_folder):
    return compress(load_model(tiny_folder), CompressionConfig.preset("ppe", k=4))


@pytest.fixture
def make(model, tiny_processor):
    """make(skip_broken) -> Collator."""
    return lambda skip_broken=False: Collator(tiny_processor, model.compression.vision, SAMPLING, None, skip_broken)


@pytest.fixture
def mixed(write_image, write_clip) -> list[Record]:
    """One record of every kind, most of them with several turns."""
    a, b, c, d = write_image("a.png", 1), write_image("b.png", 2, (96, 48)), write_clip("c.mp4"), write_clip("d.mp4", 6)
    packed = talk("<image>\nshape red", "ring", "row red", "3", "count blue", "5")
    return [
        Record("text", (), (), (("system", "col"), *talk("count", "1", "row", "2"))),
        Record("images", (a, b), (), talk("<image> and <image>", "ring", "row red", "3", "col blue", "4")),
        Record("later", (a, b), (), talk("<image>shape", "ring", "<image>shape", "square")),
        Record("videos", (), (c, d), talk("<video>count", "5", "<video>count", "2")),
        Record("both", (b,), (c,), talk("<video>then<image>", "ring", "row", "1")),
        Record("packed", (a,), (), packed, independent=True),
    ]


def inputs(batch: dict) -> dict:
    """The part of a batch that the model takes."""
    return {key: value for key, value in batch.items() if key not in NOTES}


def same(batch: dict, other: dict) -> None:
    assert inputs(batch).keys() == inputs(other).keys()
    for key, value in inputs(batch).items():
        assert_equal(value, other[key], key)


# -- all kinds together ------------------------------------------------------------------------------------------------


def test_loss_is_on_the_assistants_turns_of_every_record(make, mixed, tiny_processor):
    batch = make()(mixed)
    assert batch["sample_ids"] == ["text", "images", "later", "videos", "both", "packed"]
    assert batch["skipped"] == []
    for row, labels, record in zip(batch["input_ids"], batch["labels"], mixed):
        place = labels != IGNORED
        assert torch.equal(row[place], labels[place])
        said = tiny_processor.tokenizer.convert_ids_to_tokens(labels[place])
        answers = [text for role, text in record.turns if role == "assistant"]
        assert said == [word for answer in answers for word in (answer, "<|im_end|>")], record.id


def test_a_mixed_batch_gives_each_record_the_loss_it_has_alone(model, make, mixed):
    collator = make()
    together = model(**inputs(collator(mixed))).loss
    alone = torch.stack([model(**inputs(collator([record]))).loss for record in mixed])
    weights = torch.tensor([4.0, 6.0, 4.0, 4.0, 4.0, 6.0])  # answer tokens
    assert together.item() == loss_near(((alone * weights).sum() / weights.sum()).item(), layers=3)


def test_a_text_that_ends_a_turn_by_itself_is_refused(make):
    """The answer would be taken to end at the text's own end token."""
    with pytest.raises(InputError, match="line 7: a text contains"):
        make()([Record("d.jsonl line 7", (), (), talk("count", "1 <|im_end|> 2"))])


# -- files that break --------------------------------------------------------------------------------------------------


@pytest.fixture
def damaged(tmp_path, write_image, write_clip) -> list[Record]:
    """Records whose files are each missing or broken in another way."""
    whole, clip, noise = Path(write_image("w.png")).read_bytes(), Path(write_clip("w.mp4")).read_bytes(), b"\x07" * 400
    Image.fromarray(np.zeros((1, 201, 3), np.uint8)).save(tmp_path / "narrow.png")
    files = {
        "cut.png": whole[: len(whole) // 2],
        "empty.png": b"",
        "noise.png": whole[:200] + noise + whole[600:],
        "text.png": b"no picture",
        "cut.mp4": clip[: len(clip) // 2],
        "empty.mp4": b"",
        "noise.mp4": noise + clip[400:],
        "picture.mp4": whole[:100],
    }
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    names = [*files, "narrow.png", "none.png", "none.mp4"]
    records = []
    for number, name in enumerate(names, 10):
        path, image = (str(tmp_path / name),), name.endswith("png")
        turns = talk("<image>" if image else "<video>", "ring")
        records.append(Record(f"line {number}", path if image else (), () if image else path, turns, id=name))
    return records


def test_a_broken_record_stops_with_its_line_and_file(make, damaged, write_image):
    good = picture(write_image("a.png"))
    for record in damaged:
        (path,) = record.images + record.videos
        with pytest.raises(InputError) as error:
            make()([good, record])
        assert str(error.value).startswith(f"{record.where}: ")
        assert path in str(error.value)
        assert "\n" not in str(error.value)


def test_broken_records_are_left_out_and_reported(make, damaged, mixed):
    every = [record for pair in zip(mixed, damaged) for record in pair] + damaged[len(mixed) :]
    batch, expected = make(True)(every), make()(mixed)
    same(batch, expected)
    assert batch["sample_ids"] == expected["sample_ids"]
    assert [name for name, _ in batch["skipped"]] == [record.id for record in damaged]
    for (_, reason), record in zip(batch["skipped"], damaged):
        assert reason.startswith(f"{record.where}: ")


def test_where_nothing_is_left_a_text_without_loss_takes_the_step(model, make, damaged):
    batch = make(True)(damaged[:2])
    assert batch["sample_ids"] == []
    assert len(batch["skipped"]) == 2
    assert (batch["labels"] == IGNORED).all()
    assert batch["input_ids"].shape == batch["labels"].shape
    assert "pixel_values" not in batch
    loss = model(**inputs(batch), num_items_in_batch=torch.tensor(5)).loss
    loss.backward()
    assert loss == 0
    assert all((p.grad == 0).all() for p in model.model.language_model.parameters() if p.grad is not None)


def test_workers_outlive_broken_files(make, damaged, mixed):
    every = [*damaged[:4], *mixed, *damaged[4:]]
    loader = DataLoader(ChatDataset(every), 3, collate_fn=make(True), num_workers=2, timeout=60)
    batches = list(loader)
    assert [name for batch in batches for name in batch["sample_ids"]] == [record.id for record in mixed]
    assert sum(len(batch["skipped"]) for batch in batches) == len(damaged)


def test_a_worker_that_may_not_skip_says_which_record(make, damaged, write_image):
    records = [picture(write_image("a.png")), damaged[0]]
    loader = DataLoader(ChatDataset(records), 1, collate_fn=make(), num_workers=1, timeout=60)
    with pytest.raises(InputError, match=r"(?s)line 10: image .*cut\.png cannot be read"):
        list(loader)


@pytest.mark.ci
def test_a_file_that_vanishes_while_the_epoch_runs(make, write_image):
    paths = [write_image("a.png", 1), write_image("b.png", 2)]
    records = [picture(path, number) for number, path in enumerate(paths)]
    collator = make(True)
    assert collator(records)["sample_ids"] == ["r0", "r1"]
    Path(paths[1]).unlink()
    batch = collator(records)
    assert batch["sample_ids"] == ["r0"]
    assert batch["skipped"] == [["r1", f"d.jsonl line 1: image {paths[1]} does not exist: check the path"]]
