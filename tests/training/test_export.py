"""merge_lora(), export(): a run's folder becomes a plain checkpoint; a wrong base and half a folder are refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from support import random_model
from tolerances import assert_rounds_alike, exact

from ppe_npu import CompressionConfig, compress, restore
from ppe_npu.checkpoints.loading import load_model, load_processor
from ppe_npu.demo import tiny
from ppe_npu.errors import InputError
from ppe_npu.files import write_json
from ppe_npu.training.adapters import Adapter, add_adapter, save_adapter
from ppe_npu.training.checkpoint import ADAPTER_WEIGHTS, BASE, COMPRESSION, WHOLE, base_record, read_base
from ppe_npu.training.export import export, merge_lora
from ppe_npu.training.parts import PARTS
from ppe_npu.training.whole import whole_record

PPE = CompressionConfig.preset("ppe", k=4)


@torch.no_grad()
def logits(model):
    """Of a text: what plain models of all versions number alike."""
    ids = torch.arange(len(tiny.SPECIAL_TOKENS), len(tiny.VOCABULARY))[None]
    return model(input_ids=ids).logits


def save_run(folder: Path, base: str, kind: str | None, processor) -> torch.nn.Module:
    """What `train` leaves in final/: an adapter of this kind, or with None all weights; gives the dense model."""
    model = load_model(base)
    record = base_record(model, base)
    compress(model, PPE)
    torch.manual_seed(3)
    if kind is not None:
        model = add_adapter(model, Adapter(kind, rank=2, parts=PARTS))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.05 * torch.randn_like(parameter)
    restore(model)
    folder.mkdir(parents=True)
    (model.save_pretrained if kind is None else lambda path: save_adapter(model, path))(folder)
    processor.save_pretrained(folder)
    write_json(folder / COMPRESSION, PPE.to_dict())
    write_json(folder / BASE, record)
    return model


@pytest.fixture(scope="module")
def run(tmp_path_factory, tiny_folder, tiny_processor):
    """(folder, model) of a LoRA run of the tiny model; tests must not change them."""
    folder = tmp_path_factory.mktemp("run") / "final"
    return folder, save_run(folder, tiny_folder, "lora", tiny_processor)


@pytest.fixture
def copy(run, tmp_path):
    """The LoRA run's folder, to be changed."""
    return Path(shutil.copytree(run[0], tmp_path / "final"))


def as_checkpoint(folder: Path, step: int = 2) -> Path:
    """The folder as the Trainer leaves it while it runs."""
    folder = folder.rename(folder.with_name(f"checkpoint-{step}"))
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth", "training_args.bin"):
        (folder / name).write_bytes(b"state")
    write_json(folder / "trainer_state.json", {"global_step": step})
    write_json(folder / WHOLE, {"step": step})
    return folder


def listed(folder: Path, step: int = 2) -> Path:
    """as_checkpoint with a list of its files, as the Trainer leaves it today."""
    folder = as_checkpoint(folder, step)
    write_json(folder / WHOLE, whole_record(folder, step))
    return folder


def save_shares(folder: Path, model: torch.nn.Module, processes: int = 2) -> None:
    """A ZeRO-2 checkpoint's shares of the weights, as DeepSpeed's processes leave them."""
    parameters = dict(model.named_parameters())
    flat = torch.cat([parameter.detach().flatten() for parameter in parameters.values()])
    flat = torch.nn.functional.pad(flat, (0, -len(flat) % (2 * processes)))
    shares = folder / "global_step2"
    shares.mkdir()
    for rank, share in enumerate(flat.chunk(processes)):
        optimizer = {"zero_stage": 2, "partition_count": processes, "single_partition_of_fp32_groups": [share.clone()]}
        torch.save({"optimizer_state_dict": optimizer}, shares / f"zero_pp_rank_{rank}_mp_rank_00_optim_states.pt")
    shapes = {name: parameter.shape for name, parameter in parameters.items()}
    states = {"module": {}, "buffer_names": [], "param_shapes": [shapes], "shared_params": {}, "ds_version": "0.19.8"}
    torch.save(states, shares / "mp_rank_00_model_states.pt")
    (folder / "latest").write_text("global_step2")


def check_logits(plain, model) -> None:
    """The two answer alike but for rounding, that of merged weights among it."""
    assert_rounds_alike(logits(plain.float()), logits(model), exact(model, lambda: logits(model)))


def check_plain(folder: Path, model) -> None:
    """Plain transformers finds every weight and no other, and answers as `model`; nothing of training is there."""
    from transformers import AutoProcessor, Qwen2_5_VLForConditionalGeneration

    plain, found = Qwen2_5_VLForConditionalGeneration.from_pretrained(folder, output_loading_info=True)
    assert not any(found[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    check_logits(plain, model)
    assert AutoProcessor.from_pretrained(folder).chat_template == tiny.CHAT_TEMPLATE
    assert CompressionConfig.from_file(folder / COMPRESSION) == PPE
    assert read_base(folder)["class"] == "Qwen2_5_VLForConditionalGeneration"
    names = {file.name for file in folder.iterdir()}
    assert not {name for name in names if name.startswith(("adapter", "optimizer", "trainer", "training", "whole"))}


@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_a_merged_model_is_the_adapters(tiny_folder, tiny_processor, tmp_path, kind):
    model = save_run(tmp_path / "final", tiny_folder, kind, tiny_processor)
    before = logits(load_model(tiny_folder))
    assert (logits(model) - before).abs().max() > 0.1
    assert merge_lora(tmp_path / "final", tmp_path / "merged") == tmp_path / "merged"
    check_plain(tmp_path / "merged", model)
    assert not list(tmp_path.glob(".*")), "nothing is left beside it"


def test_what_is_exported_of_a_checkpoint_is_what_was_written(copy, tmp_path):
    """Zeros in the weights are found; files of training alone may be gone or changed, they are not exported."""
    folder = listed(copy)
    (folder / "optimizer.pt").unlink()
    (folder / "rng_state.pth").write_bytes(b"other")
    export(folder, tmp_path / "plain")
    weights = folder / ADAPTER_WEIGHTS
    content = weights.read_bytes()
    middle = len(content) // 2
    weights.write_bytes(content[:middle] + bytes(64) + content[middle + 64 :])
    with pytest.raises(InputError, match=rf"{ADAPTER_WEIGHTS} is damaged: .*; take another checkpoint"):
        export(folder, tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_shares_are_checked_before_they_are_put_together(tiny_folder, tiny_processor, tmp_path):
    folder = tmp_path / "final"
    model = load_model(tiny_folder)
    model.config.save_pretrained(folder)
    tiny_processor.save_pretrained(folder)
    save_shares(folder, model)
    folder = listed(folder)
    (folder / "optimizer.pt").unlink()
    share = folder / "global_step2" / "zero_pp_rank_1_mp_rank_00_optim_states.pt"
    share.write_bytes(share.read_bytes()[:-9])
    with pytest.raises(InputError, match=f"{share} is damaged: .* bytes of .*; take another checkpoint"):
        export(folder, tmp_path / "plain")


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen3_vl"])
def test_the_other_families_are_merged_too(tiny_processor, tmp_path, family):
    import transformers

    random_model(family=family).save_pretrained(tmp_path / "base")
    model = save_run(tmp_path / "final", str(tmp_path / "base"), "dora", tiny_processor)
    merge_lora(tmp_path / "final", tmp_path / "merged")
    plain_class = getattr(transformers, type(model.get_base_model()).__name__)
    plain, found = plain_class.from_pretrained(tmp_path / "merged", output_loading_info=True)
    assert not any(found[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    check_logits(plain, model)
    kept, written = (load_file(tmp_path / name / "model.safetensors") for name in ("base", "merged"))
    assert kept.keys() == written.keys()
    moved = {name for name in kept if not torch.equal(kept[name], written[name])}
    assert any("visual" in name for name in moved)
    assert not {name for name in moved if name.endswith("bias") or "norm" in name}


def test_a_merged_model_is_compressed_as_it_was_trained(run, tmp_path):
    merged = load_model(merge_lora(run[0], tmp_path / "merged"))
    tokens = tiny.VOCABULARY
    inputs = load_processor(tmp_path / "merged")(
        images=[torch.rand(3, 48, 48, generator=torch.Generator().manual_seed(1))],
        text=["<|vision_start|><|image_pad|><|vision_end|> shape red"],
        return_tensors="pt",
        do_rescale=False,
    )
    assert (inputs["input_ids"] == tokens["<|image_pad|>"]).sum() == tiny.VISUAL_TOKENS
    inputs.pop("mm_token_type_ids", None)
    compress(run[1], PPE)
    try:
        with torch.no_grad():
            expected, found = (m(**inputs).logits for m in (run[1], compress(merged, PPE)))
            true = exact(run[1], lambda: run[1](**inputs).logits)
    finally:
        restore(run[1])
    assert_rounds_alike(found, expected, true)


def test_the_base_may_have_moved(run, copy, tiny_folder, tmp_path):
    moved = shutil.copytree(tiny_folder, tmp_path / "moved")
    record = read_base(copy)
    write_json(copy / BASE, {**record, "model": str(tmp_path / "gone")})
    with pytest.raises(InputError, match="gone, which is gone: name its base with --model"):
        merge_lora(copy, tmp_path / "merged")
    merge_lora(copy, tmp_path / "merged", model=moved)
    check_plain(tmp_path / "merged", run[1])


def wrong_base(kind: str, tiny_folder: str, tiny_processor, folder: Path) -> Path:
    """A model that an adapter of the tiny one must not be merged into."""
    if kind == "another class":
        random_model(family="qwen2_vl").save_pretrained(folder)
    elif kind == "other shapes":
        random_model().save_pretrained(folder)
    elif kind == "another draw":
        tiny.build_model(seed=1).save_pretrained(folder)
    else:  # "one matrix moved", by a fine-tuning of its own
        model = load_model(tiny_folder)
        with torch.no_grad():
            model.model.language_model.layers[1].mlp.up_proj.weight.mul_(1.001)
        model.save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("another class", "a Qwen2_5_VLForConditionalGeneration, but {base} is a Qwen2VLForConditionalGeneration"),
        ("other shapes", "channels at model.* but {base} has"),
        ("another draw", "trained on {own} .* but {base} has other weights"),
        ("one matrix moved", "trained on {own} .* but {base} has other weights"),
    ],
)
def test_a_wrong_base_is_refused(run, tiny_folder, tiny_processor, tmp_path, kind, words):
    base = wrong_base(kind, tiny_folder, tiny_processor, tmp_path / "base")
    with pytest.raises(InputError, match=words.format(base=base, own=tiny_folder)) as error:
        merge_lora(run[0], tmp_path / "merged", model=base)
    assert str(run[0]) in str(error.value)
    assert "--model" in str(error.value)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "merged").exists()


def test_an_adapter_that_is_not_whole_is_refused(copy, tmp_path):
    file = copy / "adapter_model.safetensors"
    tensors, data = load_file(file), file.read_bytes()

    def refuse(words):
        with pytest.raises(InputError, match=words) as error:
            merge_lora(copy, tmp_path / "merged")
        assert "\n" not in str(error.value)
        assert not (tmp_path / "merged").exists()

    first = next(name for name in tensors if "lora_B" in name)
    save_file({name: value for name, value in tensors.items() if name != first}, file)
    refuse("does not fit")
    save_file({**tensors, first: torch.full_like(tensors[first], float("nan"))}, file)
    refuse("cannot be merged")
    save_file({}, file)
    refuse("holds no weights")
    file.write_bytes(data[: len(data) // 2])
    refuse("is damaged")
    file.write_bytes(data)
    settings = (copy / "adapter_config.json").read_text()
    (copy / "adapter_config.json").write_text(settings.replace('"LORA"', '"MAGIC"'))
    refuse("adapter_config.json cannot be used")
    (copy / "adapter_config.json").unlink()
    refuse("holds no adapter_config.json")
    (copy / "adapter_config.json").write_text(settings)
    odd = json.dumps({**read_base(copy), "dtype": "nn"})
    for text in ("{", "[]", '{"model": "x"}', odd):
        (copy / BASE).write_text(text)
        refuse("base.json is damaged")
    (copy / BASE).unlink()
    refuse("holds no base.json")


def test_a_checkpoint_of_full_weights_is_exported_without_its_training_state(tiny_folder, tiny_processor, tmp_path):
    model = save_run(tmp_path / "x", tiny_folder, None, tiny_processor)
    checkpoint = as_checkpoint(tmp_path / "x")
    export(checkpoint, tmp_path / "plain")
    check_plain(tmp_path / "plain", model)
    kept, written = (load_file(folder / "model.safetensors") for folder in (checkpoint, tmp_path / "plain"))
    assert kept.keys() == written.keys()
    assert all(torch.equal(kept[name], written[name]) for name in kept)
    export(checkpoint, tmp_path / "half", dtype="bf16")
    half = load_file(tmp_path / "half" / "model.safetensors")
    assert all(torch.equal(half[name], kept[name].to(torch.bfloat16)) for name in kept)
    with pytest.raises(InputError, match=r"holds no adapter_config\.json: export it"):
        merge_lora(checkpoint, tmp_path / "merged")
    with pytest.raises(InputError, match="--model is for an adapter"):
        export(checkpoint, tmp_path / "merged", model=tiny_folder)


def test_a_checkpoint_of_an_adapter_is_exported_merged(run, copy, tmp_path):
    (tmp_path / "plain").mkdir()
    export(as_checkpoint(copy), tmp_path / "plain")
    check_plain(tmp_path / "plain", run[1])


def test_deepspeeds_shares_are_put_together(tiny_folder, tiny_processor, tmp_path):
    pytest.importorskip("deepspeed")
    model = save_run(tmp_path / "x", tiny_folder, None, tiny_processor)
    checkpoint = as_checkpoint(tmp_path / "x")
    save_shares(checkpoint, load_model(tiny_folder))
    export(checkpoint, tmp_path / "whole")  # whole weights come first
    check_plain(tmp_path / "whole", model)
    shutil.rmtree(checkpoint / "global_step2")
    save_shares(checkpoint, model)
    (checkpoint / "model.safetensors").rename(tmp_path / "before.safetensors")
    export(checkpoint, tmp_path / "plain")
    check_plain(tmp_path / "plain", model)
    kept, written = load_file(tmp_path / "before.safetensors"), load_file(tmp_path / "plain" / "model.safetensors")
    assert kept.keys() == written.keys()
    assert all(torch.equal(kept[name], written[name]) for name in kept)
    (checkpoint / "global_step2" / "zero_pp_rank_1_mp_rank_00_optim_states.pt").unlink()
    with pytest.raises(InputError, match="its shares cannot be put together"):
        export(checkpoint, tmp_path / "new")
    shutil.rmtree(checkpoint / "global_step2")
    with pytest.raises(InputError, match="holds no weights"):
        export(checkpoint, tmp_path / "new")


def test_half_a_checkpoint_and_a_full_output_are_refused(copy, tmp_path):
    for write in (merge_lora, export):
        (tmp_path / "full").mkdir(exist_ok=True)
        (tmp_path / "full" / "notes.txt").write_text("mine")
        with pytest.raises(InputError, match="full is not empty: name a new folder"):
            write(copy, tmp_path / "full")
        assert [file.name for file in (tmp_path / "full").iterdir()] == ["notes.txt"]
        with pytest.raises(InputError, match=r"notes.txt is a file: name a folder"):
            write(copy, tmp_path / "full" / "notes.txt")
        with pytest.raises(InputError, match="none does not exist"):
            write(tmp_path / "none", tmp_path / "new")
    checkpoint = as_checkpoint(copy, step=7)
    (checkpoint / WHOLE).unlink()
    for write in (merge_lora, export):
        with pytest.raises(InputError, match=r"checkpoint-7 was cut off while it was saved \(no whole.json\)"):
            write(checkpoint, tmp_path / "new")
    renamed = checkpoint.rename(tmp_path / "mine")  # what it is still shows
    with pytest.raises(InputError, match="cut off"):
        export(renamed, tmp_path / "new")
    (renamed / "trainer_state.json").unlink()
    (renamed / "tokenizer_config.json").unlink()
    with pytest.raises(InputError, match="holds no processor"):
        export(renamed, tmp_path / "new")


def test_an_adapters_folder_is_no_model_and_says_what_makes_one(run):
    with pytest.raises(InputError, match="holds an adapter alone: `ppe-npu merge-lora --adapter"):
        load_model(run[0])


def test_the_base_is_recorded_before_an_adapter_is_attached(tiny_folder):
    model = load_model(tiny_folder, dtype="bf16")
    record = base_record(model, tiny_folder)
    assert record["model"] == str(Path(tiny_folder).resolve())
    assert record["dtype"] == "bfloat16"
    assert json.loads(json.dumps(record)) == record
    with pytest.raises(ValueError, match="before an adapter"):
        base_record(add_adapter(model, Adapter(rank=2)), tiny_folder)


def test_the_commands(run, tiny_folder, tmp_path, capfd):
    from ppe_npu import cli

    given = ["--output", str(tmp_path / "merged"), "--dtype", "bf16"]
    assert cli.main(["merge-lora", "--adapter", str(run[0]), "--model", tiny_folder, *given]) == 0
    assert f"the merged model is in {tmp_path / 'merged'}" in capfd.readouterr().out
    assert load_model(tmp_path / "merged", dtype="auto").dtype == torch.bfloat16
    assert cli.main(["export", "--checkpoint", str(tmp_path / "merged"), "--output", str(tmp_path / "plain")]) == 0
    assert f"the plain checkpoint is in {tmp_path / 'plain'}" in capfd.readouterr().out
    assert cli.main(["export", "--checkpoint", str(run[0]), "--output", str(tmp_path / "plain")]) == 2
    assert capfd.readouterr().err == f"ppe-npu: error: output {tmp_path / 'plain'} is not empty: name a new folder\n"
