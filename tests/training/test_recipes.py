"""Recipes: the package's own, a user's, a run's settings as one; and the command line that overrides them."""

from __future__ import annotations

import json

import numpy as np
import pytest
import yaml
from PIL import Image
from safetensors.torch import load_file
from support import random_model

from ppe_npu.cli.parser import build_parser
from ppe_npu.cli.train import _asked
from ppe_npu.data.placeholders import visual_ids
from ppe_npu.errors import InputError
from ppe_npu.training.args import TrainConfig
from ppe_npu.training.recipes import load_recipe, names
from ppe_npu.training.trainer import train

OWN = {"model": "m", "data": ["d.json"], "output": "o"}


WRONG = """epochs: .inf; max_steps: 2.5; save_steps: 0.5; batch_size: 1.5; learning_rate: .inf; packing: "no"; seed: 1.5
logging_steps: 0.5; num_workers: 1.5; max_grad_norm: .inf; weight_decay: .inf; output: 5; data_root: 5; min_pixels: big
max_pixels: [1]; frozen: 5; betas: 0.9; data: 5; video: [1]; video: {fps: "2"}; video: {nframes: 2.5}; adapter: []
compression: {1: 2}; deepspeed: 5; decay_fraction: x; model: 5; device: 5; device: [1]; warmup_steps: .inf
save_total_limit: 0.5; gradient_accumulation: 1.5; max_length: 2.5; seed: 99999999999999999999; overwrite: "false"
resume: 1; fused_adamw: "yes"; tensorboard: null; group_by_length: 0; gradient_checkpointing: "on"; cache_pixels: []"""


@pytest.mark.parametrize("line", [line.strip() for line in WRONG.replace("\n", ";").split(";")])
def test_a_line_of_the_wrong_kind_is_named_with_its_value(tmp_path, line):
    """Each of these lines once ended in a traceback, or was read as something else."""
    (tmp_path / "recipe.yaml").write_text(line)
    with pytest.raises(InputError, match=f"recipe.yaml: .*{line.partition(':')[0]}") as error:
        load_recipe(tmp_path / "recipe.yaml")
    value = yaml.safe_load(line).popitem()[1]
    inner = [*value, *value.values()] if isinstance(value, dict) else [value]
    assert any(str(part) in str(error.value) for part in inner)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", names())
def test_every_recipe_of_the_package_is_a_config(name):
    config = TrainConfig(**load_recipe(name) | {"data": "d.json", "output": "o"})
    assert config.accumulation(1) * config.batch_size == config.accumulation(4) * config.batch_size * 4 == 32


def test_the_released_recipe():
    config = TrainConfig(**load_recipe("ppe_sft_qwen2_5_vl") | {"data": "d.json", "output": "o"})
    assert config.learning_rates == {"language": 1e-6, "merger": 1e-5, "vision": 2e-6}
    assert (config.weight_decay, config.schedule, config.warmup_steps, config.global_batch) == (0.1, "cosine", 0.03, 32)
    assert (config.min_pixels, config.max_pixels) == (512 * 28 * 28, 1280 * 28 * 28)
    assert (config.video.nframes, config.video.min_pixels, config.video.max_pixels) == (64, 128 * 784, 768 * 784)
    assert config.deepspeed.endswith("zero2_offload.json")
    assert config.frozen == ()


def test_pixelprunes_recipe_learns_from_labels_and_from_the_model_that_sees_all():
    config = TrainConfig(**load_recipe("pixelprune_qwen3_vl") | {"data": "d.json", "output": "o"})
    (step,) = config.compression.methods
    assert (step.name, step.place, step.threshold, config.compression.k) == ("pixelprune", "pixels", 0, 1)
    assert (config.distill_weight, config.betas, config.learning_rates["vision"]) == (0.5, (0.9, 0.95), 1e-5)
    assert (config.copies_teacher, config.least_rate) == (True, 0.01)


@pytest.mark.slow
def test_pixelprunes_recipe_trains(spelling_processors, tmp_path):
    """Trains the recipe, except for what a CPU lacks, with a tiny Qwen3-VL on pages of large areas of one colour."""
    processor, folder = spelling_processors["qwen3_vl"], tmp_path / "base"
    ids = visual_ids(processor)
    model = random_model(family="qwen3_vl", vocab_size=len(processor.tokenizer))
    model.config.image_token_id, model.config.video_token_id = ids.values()
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    written = []
    for number in range(8):
        page = np.full((64, 48, 3), 255, np.uint8)
        page[8 * (number % 4) : 8 * (number % 4) + 16, :24] = 20 * number
        Image.fromarray(page).save(tmp_path / f"{number}.png")
        turns = [{"from": "human", "value": "<image>\nrow"}, {"from": "gpt", "value": str(number)}]
        written.append({"id": number, "image": f"{number}.png", "conversations": turns})
    (tmp_path / "train.json").write_text(json.dumps(written))
    here = {
        "model": str(folder), "data": str(tmp_path / "train.json"), "output": str(tmp_path / "run"), "device": "cpu",
        "dtype": "fp32", "deepspeed": None, "packing": False, "num_workers": 0, "tensorboard": False,
        "max_steps": 6, "global_batch": 4, "warmup_steps": 1, "learning_rate": 1e-3, "logging_steps": 1,
    }  # fmt: skip
    found = train(TrainConfig(**load_recipe("pixelprune_qwen3_vl") | here))
    losses = [loss for _, loss in found.losses]
    assert len(losses) == 6
    assert losses[-1] < losses[0]
    trained = load_file(tmp_path / "run" / "final" / "model.safetensors")
    moved = {name for name, value in load_file(folder / "model.safetensors").items() if (trained[name] != value).any()}
    assert {"visual" in name for name in moved} == {True, False}


def test_what_is_no_recipe_is_refused(tmp_path):
    for text, words in (
        ("a: [", "cannot be read as YAML"),
        ("- 1", "contains a list"),
        ("learning_rat: 1", "no setting learning_r"),
    ):
        (tmp_path / "r.yaml").write_text(text)
        with pytest.raises(InputError, match=words):
            load_recipe(tmp_path / "r.yaml")
    with pytest.raises(InputError, match=r"neither a file nor one of .*ppe_lora"):
        load_recipe("none")
    (tmp_path / "r.yaml").write_text("video: {frames: 3}\nadapter: {size: 3}\n")
    with pytest.raises(InputError, match=r"adapter has no size"):
        TrainConfig(**OWN | load_recipe(tmp_path / "r.yaml"))
    with pytest.raises(InputError, match=r"video has no frames"):
        TrainConfig(**OWN | {"video": {"frames": 3}})
    with pytest.raises(InputError, match=r"learning_rate='1e-5' must be a number"):
        TrainConfig(**OWN | {"learning_rate": "1e-5"})  # YAML reads a number without a dot as text


def test_settings_of_a_run_are_a_recipe(tmp_path):
    config = TrainConfig(**OWN, adapter="dora", video={"fps": 1.0}, compression={"layers": [1], "ratio": [0.5, 0.3]})
    (tmp_path / "train.json").write_text(json.dumps(config.to_dict()))
    assert TrainConfig(**load_recipe(tmp_path / "train.json")) == config


def asked(tmp_path, recipe: dict, *flags: str) -> dict:
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    args = build_parser().parse_args(["train", "--config", str(tmp_path / "recipe.yaml"), *flags])
    return _asked(args, load_recipe(args.config), "m", "d.json")


def test_flags_go_over_the_recipe(tmp_path):
    recipe = {
        "learning_rate": 1.0, "dtype": "bf16", "compression": "ppe", "global_batch": 32, "video": {"nframes": 4},
        "adapter": {"kind": "lora", "rank": 64}, "packing": True, "output": "there",
    }  # fmt: skip
    values = asked(tmp_path, recipe)
    assert {key: values[key] for key in recipe if key != "compression"} == {
        key: value for key, value in recipe.items() if key != "compression"
    }
    flags = ["--learning-rate", "2", "--ratio", "0.3", "--gradient-accumulation", "3", "--fps", "2", "--lora-rank", "8"]
    values = asked(tmp_path, recipe, *flags, "--output", "here", "--dtype", "fp32", "--no-packing")
    assert values["packing"] is False
    assert (values["learning_rate"], values["dtype"], values["output"]) == (2.0, "fp32", "here")
    assert values["compression"].ratio == 0.3
    assert values["gradient_accumulation"] == 3
    assert "global_batch" not in values
    assert values["video"] == {"fps": 2.0}
    assert values["adapter"] == {"kind": "lora", "rank": 8}
    TrainConfig(**values)
    assert asked(tmp_path, {"device": "cpu"})["device"] == "cpu"
    assert asked(tmp_path, {"device": "cpu"}, "--device", "auto")["device"] == "auto"  # the default, but asked for


def test_none_takes_back_what_a_recipe_says(tmp_path):
    recipe = {"adapter": {"kind": "lora"}, "frozen": ["vision"], "deepspeed": "zero2"}
    values = asked(tmp_path, recipe, "--adapter", "none", "--frozen", "none", "--deepspeed", "none")
    config = TrainConfig(**values)
    assert (config.adapter, config.frozen, config.deepspeed) == (None, (), None)
    assert TrainConfig(**asked(tmp_path, recipe)).deepspeed.endswith("zero2.json")
    with pytest.raises(InputError, match="neither a file nor one of zero2, zero2_offload, zero3, zero3_offload"):
        TrainConfig(**OWN, deepspeed="zero4")


def test_a_global_batch_must_be_shared_evenly():
    config = TrainConfig(**OWN, batch_size=3, global_batch=32)
    with pytest.raises(InputError, match=r"global_batch=32 is not a multiple of 6 \(batch_size 3 x 2 processes\)"):
        config.accumulation(2)
    with pytest.raises(InputError, match="exclude each other"):
        TrainConfig(**OWN, global_batch=32, gradient_accumulation=2)
