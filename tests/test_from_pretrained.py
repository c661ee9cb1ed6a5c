"""A folder that records its compression: one call of ours loads it compressed, plain transformers loads it dense."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

import ppe_npu
from ppe_npu import CompressionConfig, compress
from ppe_npu.checkpoints.compressed import note_compression
from ppe_npu.checkpoints.loading import load_model, load_processor
from ppe_npu.data.inputs import build_inputs
from ppe_npu.errors import InputError

PPE = CompressionConfig.preset("ppe", k=4, ratio=0.25)


@pytest.fixture
def folder(tiny_folder, tmp_path):
    copy = Path(shutil.copytree(tiny_folder, tmp_path / "model"))
    note_compression(copy, PPE)
    return copy


@pytest.fixture
def inputs(tiny_folder, write_image):
    content = [{"type": "image", "image": write_image("a.png")}, {"type": "text", "text": "row red"}]
    return build_inputs(load_processor(tiny_folder), [[{"role": "user", "content": content}]])


@pytest.mark.parametrize("said", ["both", "compression.json", "config.json"])
def test_it_is_compressed_as_the_folder_says(folder, tiny_folder, inputs, said):
    if said == "config.json":
        (folder / "compression.json").unlink()
    elif said == "compression.json":
        shutil.copy(Path(tiny_folder) / "config.json", folder)
    model = ppe_npu.from_pretrained(folder)
    assert model.compression.config == PPE
    wanted = compress(load_model(tiny_folder), PPE)(**inputs).logits
    assert torch.equal(model(**inputs).logits, wanted)


def test_plain_transformers_reads_a_dense_model(folder, tiny_folder, inputs):
    from transformers import AutoModelForImageTextToText

    plain, found = AutoModelForImageTextToText.from_pretrained(folder, output_loading_info=True)
    assert not any(found.values())
    assert torch.equal(plain.eval()(**inputs).logits, type(plain).from_pretrained(tiny_folder).eval()(**inputs).logits)
    compress(plain, PPE)
    assert plain(**inputs).logits.shape[1] < inputs["input_ids"].shape[1]


def test_another_compression_goes_over_the_folders(folder, tiny_folder):
    for given in ("dense", "random:ratio=0.5", {"ratio": 0.5, "k": 2}, CompressionConfig.preset("keep_one")):
        model = ppe_npu.from_pretrained(folder, given)
        assert model.compression.config != PPE
    with pytest.raises(InputError, match="states no compression"):
        ppe_npu.from_pretrained(tiny_folder)


@pytest.mark.parametrize("kind", ["chat", "texts"])
def test_the_pipeline_answers_as_generate_does(folder, kind):
    from PIL import Image
    from transformers import AutoProcessor, pipeline

    model, processor = ppe_npu.from_pretrained(folder), AutoProcessor.from_pretrained(folder)
    answer = pipeline("image-text-to-text", model=model, processor=processor)
    picture = Image.radial_gradient("L").convert("RGB")
    chat = [{"role": "user", "content": [{"type": "image", "image": picture}, {"type": "text", "text": "row red"}]}]
    text = processor.apply_chat_template(chat, add_generation_prompt=True)
    inputs = processor(text=[text], images=[picture], return_tensors="pt")
    ids = model.generate(**inputs, max_new_tokens=4)[:, inputs["input_ids"].shape[1] :]
    wanted = processor.batch_decode(ids, skip_special_tokens=True)[0]
    if kind == "chat":
        found = answer(text=chat, max_new_tokens=4, return_full_text=False)[0]["generated_text"]
    else:
        found = answer(images=[picture], text=[text], max_new_tokens=4, return_full_text=False)[0]["generated_text"]
    assert found.strip() == wanted.strip()
    assert model.compression.report.tokens_after == 9


def small(sections, folder):
    """A checkpoint of the tiny model with these rotary sections and random weights."""
    from ppe_npu.demo import tiny

    model = tiny.build_model(0)
    model.save_pretrained(folder), tiny.build_processor().save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    for place in (config, config.get("text_config", {})):
        for key in ("rope_parameters", "rope_scaling"):
            if isinstance(place.get(key), dict) and "mrope_section" in place[key]:
                place[key]["mrope_section"] = list(sections)
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize(("sections", "k"), [((4, 14, 14), 4), ((2, 15, 15), 2), ((8, 12, 12), 8), ((16, 8, 8), 8)])
def test_the_default_k_is_the_largest_that_fits_and_that_is_said(tmp_path, caplog, sections, k):
    folder = small(sections, tmp_path / "model")
    for config in (
        CompressionConfig.preset("ppe"),
        CompressionConfig(ratio=0.3),
        CompressionConfig.preset("random", positions="ppe"),
    ):
        caplog.clear()
        assert ppe_npu.from_pretrained(folder, config).compression.config.k == k
        said = f"k={k} replaces the default k=8: it is the most that this model's rotary sections allow"
        assert (said in caplog.text) == (k < 8)
    with pytest.raises(InputError, match=rf"k=9 exceeds .* choose k from 1 to {min(sections)}"):
        ppe_npu.from_pretrained(folder, CompressionConfig.preset("ppe", k=9))


def test_commands_take_the_largest_k_too(run, tmp_path, write_image):
    folder = small((4, 14, 14), tmp_path / "model")
    asked = ["describe", "--model", folder, "--image", write_image("a.png"), "--max-new-tokens", 1, "--device", "cpu"]
    code, _, err = run(*asked, "--compression", "ppe")
    assert code == 0, err
    assert "k=4 replaces the default k=8" in err
    assert run(*asked, "--compression", "ppe", "--k", 8)[0] == 2
    changed = CompressionConfig.preset("ppe").changed(ratio=0.2, members="last")
    assert not changed.k_named
    assert (changed.k, changed.ratio) == (8, 0.2)
    assert CompressionConfig.preset("ppe", k=8).changed(ratio=0.2).k_named
