"""Every operator of torch_npu that backends/npu can call is called, by whole models of every family, and by eval.

Runs on the emulator only: make test-npu. tests/ascend_emulator/README.md says what that shows, and what not.
"""

import ast
import json
import shutil
from pathlib import Path

import ascend_emulator
import pytest
import torch
from ascend_emulator import counters, environment
from prompts import GREEDY, MIXED, PPE, PRESETS
from support import FAMILIES, Prompt, batch, random_model
from tolerances import assert_rounds_alike, divergence_error, exact, loss_near, near, sampling_error

if not ascend_emulator.active():
    pytest.skip("the Ascend emulator is off: make test-npu", allow_module_level=True)

from test_npu_runs import counted, files, run, train  # noqa: F401

from ppe_npu import backends, compress
from ppe_npu.backends.device import exact_matmul
from ppe_npu.models.fused import fuse

ROOT = Path(__file__).parents[1]
FRAMES = [Prompt([2, ("image", (1, 4, 5)), 3, ("frames", (2, 4, 4)), 2], seed=1), MIXED[1], MIXED[2]]


def operators() -> set[str]:
    """The names of torch_npu that the files of backends/npu use."""
    found = set()
    for path in (ROOT / "backends" / "npu").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "torch_npu":
                found.add(node.attr)
    return found


def inputs_for(family: str) -> dict[str, torch.Tensor]:
    inputs = batch(*(FRAMES if family == "qwen3_vl" else MIXED))
    return inputs if family == "qwen2_5_vl" else {k: v for k, v in inputs.items() if k != "second_per_grid_ts"}


def on_npu(inputs: dict[str, torch.Tensor], dtype: torch.dtype) -> dict[str, torch.Tensor]:
    keep = ("second_per_grid_ts",)
    floating = {name for name, value in inputs.items() if value.is_floating_point() and name not in keep}
    return {name: value.to("npu", dtype if name in floating else value.dtype) for name, value in inputs.items()}


def labels_of(inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    text = inputs["attention_mask"].bool() & (inputs["input_ids"] < 90)
    return torch.where(text, inputs["input_ids"], -100)


def gradients_of(model, inputs, labels):
    model.zero_grad()
    model(**inputs, labels=labels).loss.backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_learns_and_answers_as_on_the_cpu(family):
    """fp32: the CPU's loss, gradients and ids. bf16: a loss near the CPU's, and decoding by the inference operator."""
    inputs, config = inputs_for(family), PRESETS["cascade"]
    labels, asked = labels_of(inputs), {"max_new_tokens": 3, **GREEDY}
    cpu = compress(fuse(random_model(0, family)), config)
    expected, ids = cpu(**inputs, labels=labels).loss, cpu.generate(**inputs, **asked)
    gradients, true = gradients_of(cpu, inputs, labels), exact(cpu, lambda: gradients_of(cpu, inputs, labels))
    counters.reset()
    with exact_matmul():
        for dtype in (torch.float32, torch.bfloat16):
            npu = compress(fuse(random_model(0, family).to("npu", dtype)), config)
            loss = npu(**on_npu(inputs, dtype), labels=labels.npu()).loss
            loss.backward()
            answer = npu.generate(**on_npu(inputs, dtype), **asked)
            if dtype is torch.float32:
                assert loss.item() == loss_near(expected.item())
                assert torch.equal(answer.cpu(), ids)
                assert_rounds_alike({name: p.grad.cpu() for name, p in npu.named_parameters()}, gradients, true)
    # bf16's groups may differ, so its loss is only near: as two roundings at the scale of the logits
    assert abs(loss.item() - expected.item()) <= divergence_error(cpu(**inputs).logits, dtype=torch.bfloat16)
    assert operators() <= set(counters.npu())
    # two steps after the prompt, each layer once
    assert counters.npu()["npu_fused_infer_attention_score"] == 2 * npu.config.text_config.num_hidden_layers


@pytest.mark.parametrize(
    "options",
    [
        {"num_beams": 2, "do_sample": False},
        {"do_sample": True},
        {"do_sample": False, "cache_implementation": "static"},
    ],
    ids=["beams", "sampling", "static cache"],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_every_way_to_generate(options, dtype):
    npu = compress(fuse(random_model(0).to("npu", dtype)), PPE)
    inputs = on_npu(inputs_for("qwen2_5_vl"), dtype)
    counters.reset()
    ids = npu.generate(**inputs, max_new_tokens=3, eos_token_id=None, **options)
    assert ids.shape == (3, inputs["input_ids"].shape[1] + 3)
    assert (counters.npu().get("npu_fused_infer_attention_score", 0) == 2 * 3) == (dtype is torch.bfloat16)


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointed_gradients_are_the_others(reentrant):
    inputs = inputs_for("qwen2_5_vl")
    labels, gradients = labels_of(inputs).npu(), []
    for checkpointed in (False, True):
        npu = compress(fuse(random_model(0).to("npu")), PRESETS["cascade"]).train()
        if checkpointed:
            npu.gradient_checkpointing_enable({"use_reentrant": reentrant})
        npu(**on_npu(inputs, torch.float32), labels=labels).loss.backward()
        gradients.append([parameter.grad.cpu() for parameter in npu.model.language_model.layers.parameters()])
    assert all(torch.equal(*pair) for pair in zip(*gradients))


@pytest.mark.parametrize("cu_seqlens", [None, [0, 200, 999]], ids=["dense", "packed"])
def test_dropout_drops_a_share_of_the_weights(cu_seqlens):
    length = 999
    query, key = torch.zeros(1, 2, length, 16).npu(), torch.zeros(1, 2, length, 16).npu()
    value = torch.ones(1, 2, length, 16).npu().requires_grad_()
    torch.manual_seed(0)
    out = backends.attention(query, key, value, cu_seqlens=cu_seqlens, dropout=0.25)
    share = 0.25 / (0.75 * (length if cu_seqlens is None else 1 / (200 / 999 / 200 + 799 / 999 / 799)))
    queries = 2 * length
    # What is left is scaled up.
    assert out.mean().item() == pytest.approx(1, abs=sampling_error(share**0.5, queries))
    assert out[..., 0].var().item() == pytest.approx(share, rel=sampling_error(2**0.5, queries))
    out.sum().backward()
    assert value.grad.sum().item() == near(out.sum().item(), roundings=2 * length, dtype=torch.float32)


def test_evaluation_calls_the_fused_operators(files, tmp_path):  # noqa: F811
    from ppe_npu.demo import scenes

    scenes.write_split(tmp_path / "data", "test", 2, 0, 2)
    where = ("--model", files / "model", "--data-root", tmp_path / "data")
    asked = (
        "--compression",
        "dense",
        "ppe",
        "--k",
        "4",
        "--batch-size",
        "4",
        "--max-new-tokens",
        "2",
        "--dtype",
        "bf16",
        "--cost-rounds",
        "0",
        "--no-smaller-input",
    )
    calls = {environment.CALLS: str(tmp_path / "calls")}
    done = run("eval", *where, *asked, "--device", "npu", "--dtype", "bf16", "--output", tmp_path / "eval", **calls)
    files_ = (tmp_path / "eval").rglob("predictions.jsonl")
    answers = [json.loads(line) for path in files_ for line in path.read_text().splitlines()]
    assert [answer["error"] for answer in answers if "error" in answer] == []
    assert (done.returncode, len(answers)) == (0, 8), done.stderr[-3000:]
    assert operators() <= set(counted(tmp_path / "calls"))


def test_bf16_training_with_checkpointed_gradients_goes_on_where_it_was_cut_off(files, tmp_path):  # noqa: F811
    options = ("--dtype", "bf16", "--gradient-checkpointing", "--save-steps", "1", "--batch-size", "2")
    whole = train(files, tmp_path / "whole", *options, steps=3)
    cut = shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    shutil.rmtree(cut / "final")
    (cut / "checkpoint-2" / "whole.json").unlink()  # as if the process died while it saved this one
    assert train(files, cut, *options, "--resume", steps=3) == whole
