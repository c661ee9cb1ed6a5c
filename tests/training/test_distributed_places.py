"""DeepSpeed with steps before and inside the vision tower gives one process's losses on the same global batch.

Some prompts of each process have no picture; all processes still call the same modules of the tower, in one order.
"""

from __future__ import annotations

import json
import sys

import pytest
from fixtures import write_mixed_records
from safetensors.torch import load_file
from test_distributed import TRAIN, finish, losses, start, torchrun
from tolerances import loss_near, moved_apart

STEPS = 3
RUNS = {
    "pixels, all weights in shares": ("zero3", "pixelprune:metric=mae,threshold=0.33,positions=ppe,k=4"),
    "tower, adapters on it": (
        *("zero2", "ipcv:keep=0.4,prune_block=1,stabilized_blocks=1,neighbors=3,positions=ppe,k=4"),
        *("--adapter", "lora", "--lora-parts", "vision"),
    ),
}


@pytest.fixture(scope="module")
def common(tmp_path_factory, tiny_processor):
    """A model whose tower has enough blocks for patches to be dropped, to stay away, and to be rebuilt."""
    from ppe_npu.demo import tiny

    folder = tmp_path_factory.mktemp("deep")
    tiny.build_model(seed=0, depth=3, fullatt_block_indexes=[1]).save_pretrained(folder)
    tiny_processor.save_pretrained(folder)
    data = write_mixed_records(tmp_path_factory.mktemp("data"), records=24)
    return ("--model", str(folder), "--data", str(data))


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_deepspeed_learns_as_one_process(name, common, tmp_path):
    zero, compression, *more = RUNS[name]
    asked = (*common, "--compression", compression, "--max-steps", str(STEPS), *more)
    finish(start([sys.executable, *TRAIN, *asked, "--batch-size", "8", "--output", str(tmp_path / "one")]))
    shared = ("--batch-size", "4", "--deepspeed", zero, "--output", str(tmp_path / zero))
    finish(*torchrun(*asked, *shared), seconds=900)
    expected = losses(tmp_path / "one")
    assert len(expected) == STEPS
    assert losses(tmp_path / zero) == loss_near(expected, layers=2 + 3, steps=STEPS)
    (file,) = (tmp_path / "one" / "final").glob("*model.safetensors")
    wanted, weights = load_file(file), load_file(tmp_path / zero / "final" / file.name)
    assert weights.keys() == wanted.keys()
    for key, value in wanted.items():
        apart = moved_apart([1e-5] * STEPS, weight=value.abs().max().item())
        assert (weights[key] - value).abs().max().item() <= apart, key
    if more:
        blocks = {key.split("blocks.")[1].split(".")[0] for key in wanted if "lora_B" in key and wanted[key].any()}
        assert blocks == {"0", "1", "2"}, "patches that have left and those that stay both teach"
    else:
        assert json.loads((tmp_path / "one" / "summary.json").read_text())["retention"] < 0.9
