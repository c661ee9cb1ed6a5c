"""merge_lora() and export() turn a run's folder into a plain checkpoint; a wrong base or half a folder is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from saved_runs import (  # noqa: F401
    PPE,
    as_checkpoint,
    check_logits,
    check_plain,
    copy_of_lora_run,
    listed,
    logits,
    lora_run,
    save_run,
    save_shares,
)
from support import random_model
from tolerances import assert_rounds_alike, exact

from ppe_npu import compress, restore
from ppe_npu.checkpoints.loading import load_model, load_processor
from ppe_npu.demo import tiny
from ppe_npu.errors import InputError
from ppe_npu.files import write_json
from ppe_npu.training.adapters import Adapter, add_adapter
from ppe_npu.training.checkpoint import ADAPTER_WEIGHTS, BASE, base_record, read_base
from ppe_npu.training.export import export, merge_lora


@pytest.mark.parametrize("kind", ["lora", "dora"])
@pytest.mark.ci
def test_a_merged_model_is_the_adapters(tiny_folder, tiny_processor, tmp_path, kind):
    model = save_run(tmp_path / "final", tiny_folder, kind, tiny_processor)
    before = logits(load_model(tiny_folder))
    assert (logits(model) - before).abs().max() > 0.1
    assert merge_lora(tmp_path / "final", tmp_path / "merged") == tmp_path / "merged"
    check_plain(tmp_path / "merged", model)
    assert not list(tmp_path.glob(".*")), "nothing is left beside it"


def test_what_is_exported_of_a_checkpoint_is_what_was_written(copy, tmp_path):
    """Zeros in the weights are found; files only for training are not exported, so they may be missing or changed."""
    folder = listed(copy)
    (folder / "optimizer.pt").unlink()
    (folder / "rng_state.pth").write_bytes(b"other")
    export(folder, tmp_path / "plain")
    weights = folder / ADAPTER_WEIGHTS
    content = weights.read_bytes()
    middle = len(content) // 2
    weights.write_bytes(content[:middle] + bytes(64) + content[middle + 64 :])
    with pytest.raises(InputError, match=rf"{ADAPTER_WEIGHTS} is damaged: .*; use another checkpoint"):
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
    with pytest.raises(InputError, match=f"{share} is damaged: it has .* bytes instead of .*; use another checkpoint"):
        export(folder, tmp_path / "plain")


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen3_vl"])
@pytest.mark.ci
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
    with pytest.raises(InputError, match="gone, which no longer exists: name its base with --model"):
        merge_lora(copy, tmp_path / "merged")
    merge_lora(copy, tmp_path / "merged", model=moved)
    check_plain(tmp_path / "merged", run[1])


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
    with pytest.raises(InputError, match=r"contains no adapter_config\.json: export it"):
        merge_lora(checkpoint, tmp_path / "merged")
    with pytest.raises(InputError, match="contains a whole model: leave out --model"):
        export(checkpoint, tmp_path / "merged", model=tiny_folder)


def test_a_checkpoint_of_an_adapter_is_exported_merged(run, copy, tmp_path):
    (tmp_path / "plain").mkdir()
    export(as_checkpoint(copy), tmp_path / "plain")
    check_plain(tmp_path / "plain", run[1])


@pytest.mark.ci
def test_deepspeeds_shares_are_put_together(tiny_folder, tiny_processor, tmp_path):
    pytest.importorskip("deepspeed")
    model = save_run(tmp_path / "x", tiny_folder, None, tiny_processor)
    checkpoint = as_checkpoint(tmp_path / "x")
    save_shares(checkpoint, load_model(tiny_folder))
    export(checkpoint, tmp_path / "whole")  # whole weights take precedence over shares
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
    with pytest.raises(InputError, match="its shards cannot be joined"):
        export(checkpoint, tmp_path / "new")
    shutil.rmtree(checkpoint / "global_step2")
    with pytest.raises(InputError, match="contains no weights"):
        export(checkpoint, tmp_path / "new")


def test_an_adapters_folder_is_no_model_and_says_what_makes_one(run):
    with pytest.raises(InputError, match="contains only an adapter: run `ppe-npu merge-lora --adapter"):
        load_model(run[0])


def test_the_base_is_recorded_before_an_adapter_is_attached(tiny_folder):
    model = load_model(tiny_folder, dtype="bf16")
    record = base_record(model, tiny_folder)
    assert record["model"] == str(Path(tiny_folder).resolve())
    assert record["dtype"] == "bfloat16"
    assert json.loads(json.dumps(record)) == record
    with pytest.raises(ValueError, match="an adapter is attached already"):
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
