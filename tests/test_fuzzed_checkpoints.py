"""A randomly damaged checkpoint folder: one line that names it, or a model that answers. Damaged generation settings
change no answer, except by another end token."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from bounds import bounded
from mutations import JUNK, both, damage, dice, thousand

from ppe_npu.checkpoints.generation_defaults import fields, of_checkpoint
from ppe_npu.checkpoints.loading import check_compression, load_model, load_processor
from ppe_npu.config import CompressionConfig
from ppe_npu.data.inputs import build_inputs
from ppe_npu.errors import InputError
from ppe_npu.evaluation.decoding import ASKABLE, generation_settings, ignored, notice, recorded
from ppe_npu.evaluation.generation import generate
from ppe_npu.models import compress
from ppe_npu.training.adapted import Checkpoint

CONFIG = CompressionConfig.preset("ppe", k=4)
PICTURE = np.random.default_rng(0).integers(0, 256, (48, 48, 3), dtype=np.uint8)


def answer(folder: Path) -> list[str]:
    """Answers as `ppe-npu describe` does, also with an adapter."""
    found = Checkpoint.of(folder)
    check_compression(found.model, CONFIG)
    processor = load_processor(found.processor, model=found.model)
    content = [{"type": "image", "image": PICTURE}, {"type": "text", "text": "shape red"}]
    inputs = build_inputs(processor, [[{"role": "user", "content": content}]])
    own = of_checkpoint(found.model)
    asked = generation_settings("checkpoint", own)
    assert "\n" not in f"{ignored(own, asked)}{notice(own, asked)}"
    return generate(compress(found.load("cpu"), CONFIG), processor, inputs, 2).answers


def check(whole: Path, place: Path, names: list[str], number: int) -> list[str] | None:
    """The answers of a folder with one change; None if it is refused."""
    draw = dice(whole.name, number)
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(whole, place, copy_function=os.link)
    name = draw.choice(names)
    what = (number, name, damage(place / name, whole / draw.choice(names), draw))
    with bounded(what):
        try:
            return answer(place)
        except InputError as error:
            said = str(error)
        except Exception as error:
            raise AssertionError(what) from error
    assert "\n" not in said, what
    assert len(said) < 2000, what
    assert any(words in said for words in (str(place), name, "generation ", "chat template")), (what, said)
    return None


def check_many(whole: Path, place: Path, numbers: range) -> None:
    """Checks the law for changes of one file each."""
    names = [path.name for path in whole.iterdir()]
    assert both([check(whole, place, names, number) is None for number in numbers])


@thousand(2)
def test_a_damaged_checkpoint_is_named_or_answers(tiny_folder, tmp_path, numbers):
    check_many(Path(tiny_folder), tmp_path / "copy", numbers)


@thousand(2)
def test_a_damaged_checkpoint_of_several_files_is_named_or_answers(tiny_folder, tmp_path, numbers):
    whole = tmp_path / "shards"
    shutil.copytree(tiny_folder, whole, ignore=shutil.ignore_patterns("*.safetensors"))
    load_model(tiny_folder).save_pretrained(whole, max_shard_size="300KB")
    assert len(list(whole.glob("*.safetensors"))) > 2
    check_many(whole, tmp_path / "copy", numbers)


@thousand(2)
def test_damaged_generation_settings_are_named_or_change_no_answer(tiny_folder, tmp_path, numbers):
    whole = tmp_path / "whole"
    shutil.copytree(tiny_folder, whole)
    file = whole / "generation_config.json"
    file.write_text(json.dumps(dict.fromkeys(fields()) | json.loads(file.read_text())))
    plain = answer(whole)
    found = [check(whole, tmp_path / "copy", [file.name], number) for number in numbers]
    assert both([answers is None for answers in found])
    assert sum(answers not in (plain, None) for answers in found) <= len(found) // 20  # another end token


@pytest.mark.parametrize(
    ("file", "change", "words"),
    [
        ("config.json", lambda found: found.update(image_token_id=5), "image_token_id=.*, but config.json says 5"),
        ("config.json", lambda found: found.pop("image_token_id"), "image_token_id=.*, but config.json says 151655"),
        ("config.json", lambda found: found["text_config"].update(vocab_size=20), "but config.json has 20 words"),
        ("tokenizer.json", lambda found: found["model"]["vocab"].update(row=999), "'row' has the id 999, but config"),
    ],
)
def test_words_and_placeholders_that_the_model_beside_a_processor_lacks(tiny_folder, tmp_path, file, change, words):
    """Such folders once failed in the embedding, or with features without tokens, in errors that did not name them."""
    folder = shutil.copytree(tiny_folder, tmp_path / "model")
    found = json.loads((folder / file).read_text())
    change(found)
    (folder / file).write_text(json.dumps(found))
    with pytest.raises(InputError, match=rf"tokenizer of .*model cannot be used \(.*{words}.*save the processor"):
        load_processor(folder)


@pytest.mark.slow
def test_whatever_is_asked_of_generate_is_refused_or_works(tiny_folder):
    """Each setting, with numbers, lists and texts of all kinds: an answer, or one line before or during generate()."""
    model, processor = compress(load_model(tiny_folder), CONFIG), load_processor(tiny_folder)
    content = [{"type": "image", "image": PICTURE}, {"type": "text", "text": "shape red"}]
    inputs = build_inputs(processor, [[{"role": "user", "content": content}]])
    outcomes = {"works": 0, False: 0}  # refused in more than a line: no such key
    for name in ASKABLE:
        beside = {"num_beams": 2} if name in ("early_stopping", "length_penalty") else {"do_sample": True}
        for value in (*JUNK, 1, 2, 50, 1000, 1e-6, 1e6, -50, [0], [1, 2], [[1, 2], [3]], [[[1], 2.0]], 2**63, "never"):
            try:
                asked = generation_settings({**beside, name: value}, {})
                json.dumps(recorded(asked))
                with bounded((name, value)):
                    generate(model, processor, inputs, 2, None, asked)
                outcomes["works"] += 1
            except InputError as error:
                outcomes["\n" in str(error)] += 1
    assert min(outcomes.values()) > len(ASKABLE)
