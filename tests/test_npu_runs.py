"""Whole runs on an emulated Ascend device: training, evaluation and several processes, and which operators they call.

Runs on the emulator only: make test-npu. tests/ascend_emulator/README.md says what that shows, and what not.
"""

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import ascend_emulator
import pytest
from ascend_emulator import environment
from fixtures import write_noise_records
from tolerances import loss_near

if not ascend_emulator.active():
    pytest.skip("the Ascend emulator is off: make test-npu", allow_module_level=True)

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A tiny checkpoint, and 16 records of noise with answers of one to four words."""
    from ppe_npu.demo import tiny

    folder = tmp_path_factory.mktemp("npu")
    tiny.build_model(0).save_pretrained(folder / "model")
    tiny.build_processor().save_pretrained(folder / "model")
    write_noise_records(folder, records=16, most_words=4)
    return folder


def run(*arguments, processes=1, **variables):
    """Runs `ppe-npu ...`, for several processes by torchrun on a free port."""
    command = [sys.executable, "-m", "ppe_npu.cli", *map(str, arguments)]
    if processes > 1:
        launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(processes), "--standalone"]
        command = [*launcher, *command[1:]]
    environ = os.environ | {"OMP_NUM_THREADS": "1"} | variables
    return subprocess.run(command, capture_output=True, text=True, env=environ, timeout=280, cwd=ROOT)


def counted(calls: Path) -> Counter:
    """How often each npu:: operator ran in the processes that left their counts in a file."""
    total = Counter()
    for line in calls.read_text().splitlines():
        total.update(json.loads(line)["npu"])
    return total


def train(files, output, *arguments, device="npu", steps=5, **options):
    """Losses of a run. Convolutions are in full fp32: torch_npu's default, HF32, would change losses by 4e-5."""
    data = ("--model", files / "model", "--data", files / "train.json", "--device", device, "--output", output)
    settings = ("--compression", "ppe", "--k", "4", "--learning-rate", "1e-5", "--logging-steps", "1")
    done = run("train", *data, *settings, "--max-steps", steps, *arguments, **options)
    assert done.returncode == 0, done.stderr[-3000:]
    return [loss for _, loss in json.loads((output / "summary.json").read_text())["losses"]]


@pytest.fixture(scope="module")
def on_cpu(files, tmp_path_factory):
    """Losses of one process on the CPU, for a global batch of 4."""
    return train(files, tmp_path_factory.mktemp("cpu") / "run", "--batch-size", "4", device="cpu")


def test_training_calls_the_fused_operators_and_learns_as_the_cpu_does(files, tmp_path, on_cpu):
    calls = tmp_path / "calls"
    losses = train(files, tmp_path / "run", "--batch-size", "4", **{environment.CALLS: str(calls)})
    assert losses == loss_near(on_cpu, layers=3, steps=5)
    ran = counted(calls)
    steps, blocks, layers = 5, 1, 2
    forward = {
        "npu_fusion_attention": blocks + layers,
        "npu_rotary_mul": 2 * (blocks + layers),  # query and key
        "npu_swiglu": blocks + layers,
        "npu_rms_norm": 2 * blocks + 1 + 2 * layers + 1,  # with those of the merger and of the last state
    }
    backward = {
        "npu_fusion_attention_grad": blocks + layers,
        "npu_rotary_mul_backward": 2 * (blocks + layers),
        "npu_swiglu_backward": blocks + layers,
        "npu_rms_norm_backward": 2 * blocks + 1 + 2 * layers + 1,
    }
    assert {name: ran[name] for name in forward | backward} == {
        name: steps * times for name, times in (forward | backward).items()
    }


def test_the_fused_optimizer_is_refused_as_long_as_it_misses_cleared_gradients(files, tmp_path):
    """NpuFusedAdamW keeps gradients in a buffer of its own, which model.zero_grad(), as the Trainer calls it, detaches.

    When the two agree, delete the refusal in training/trainer.py.
    """
    import torch
    import torch_npu

    def losses(optimizer, cleared):
        torch.manual_seed(0)
        model, x = torch.nn.Linear(8, 4).to("npu"), torch.ones(5, 8, device="npu")
        steps, out = optimizer(model.parameters(), lr=1e-2), []
        for _ in range(5):
            loss = model(x).square().mean()
            loss.backward()
            steps.step()
            (model if cleared == "model" else steps).zero_grad()
            out.append(loss.item())
        return out

    fused = torch_npu.optim.NpuFusedAdamW
    expected = losses(torch.optim.AdamW, "model")
    near = loss_near(expected, layers=1, steps=5)
    assert losses(fused, "optimizer") == near
    assert losses(fused, "model") != near
    data = ("--model", files / "model", "--data", files / "train.json", "--output", tmp_path / "run", "--k", "4")
    done = run("train", *data, "--device", "npu", "--fused-adamw")
    assert done.returncode == 2
    assert "fused_adamw does not work on an NPU" in done.stderr


def test_two_devices_learn_as_one_over_hccl(files, tmp_path, on_cpu):
    losses = train(files, tmp_path / "run", "--batch-size", "2", processes=2)
    assert losses == loss_near(on_cpu, layers=3, steps=5)


def test_zero_2_learns_as_one_process(files, tmp_path, on_cpu):
    pytest.importorskip("deepspeed")
    file = ROOT / "scripts" / "deepspeed_configs" / "zero2.json"
    losses = train(files, tmp_path / "run", "--batch-size", "2", "--deepspeed", file, processes=2)
    assert losses == loss_near(on_cpu, layers=3, steps=5)
    assert (tmp_path / "run" / "final" / "model.safetensors").is_file()


def test_zero_3_is_refused_where_hccl_cannot_sum_fp64_and_runs_where_it_can(files, tmp_path, on_cpu):
    pytest.importorskip("deepspeed")
    file = ROOT / "scripts" / "deepspeed_configs" / "zero3.json"
    data = ("--model", files / "model", "--data", files / "train.json", "--device", "npu", "--k", "4")
    done = run("train", *data, "--output", tmp_path / "old", "--deepspeed", file, processes=2)
    assert done.returncode != 0
    assert "ZeRO-3 sums the gradients' norm in fp64, which HCCL refuses on this chip (Ascend910B1)" in done.stderr
    chip = {environment.SOC: "Ascend950PR_9599"}
    arguments = ("--batch-size", "2", "--deepspeed", file)
    losses = train(files, tmp_path / "new", *arguments, processes=2, **chip)
    assert losses == loss_near(on_cpu, layers=3, steps=5)


def test_evaluation_and_an_answer_on_the_device(files, tmp_path):
    asked = (
        "--image",
        files / "0.png",
        "--prompt",
        "row red",
        "--max-new-tokens",
        "4",
        "--compression",
        "ppe",
        "--k",
        "4",
    )
    calls = tmp_path / "calls"
    answers, operators = [], []
    for device, dtype in (("cpu", "fp32"), ("npu", "fp32"), ("npu", "bf16")):
        done = run(
            "describe", "--model", files / "model", *asked, "--device", device, "--dtype", dtype,
            **{environment.CALLS: str(calls)},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-2000:]
        answers.append(done.stdout.splitlines()[0])
        operators.append(counted(calls) if device == "npu" else Counter())
        calls.unlink(missing_ok=True)
    assert answers[0] == answers[1]
    layers, name = 2, "npu_fused_infer_attention_score"
    # The first token of an answer comes from the prompt; in fp32 the other tokens do not use the operator either.
    assert [ran[name] for ran in operators] == [0, 0, layers * 3]
