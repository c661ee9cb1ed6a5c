"""The loop that the merge is compared with does what the released code does: its recorded groups and means, and the
groups, means and position rows of from_released."""

import json
from pathlib import Path

import bench_merge
import pytest
import torch
from bench import released_loop
from safetensors.torch import load_file
from tolerances import assert_near
from torch.utils._python_dispatch import TorchDispatchMode

from ppe_npu import CompressionConfig
from ppe_npu.methods.positions.entries import members
from ppe_npu.methods.view import View

RECORDED = Path(__file__).parent.parent / "data" / "released.safetensors"
CONFIG = CompressionConfig.from_released(
    {
        "spatial_compression": True,
        "spatial_clustering_ratio": [0.45],
        "compression_before_llm": True,
        "use_ppe": True,
        "ppe_k": 4,
    }
)


@pytest.mark.parametrize("shape", [(3, 37, 16), (1, 12, 8), (2, 64, 33)])
def test_groups_means_and_positions_are_those_of_from_released(shape):
    frames, tokens, _ = shape
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    rows = torch.randint(0, 50, (frames, 3, tokens), generator=torch.Generator().manual_seed(2))
    (method,) = CONFIG.methods
    budget = method.kept(tokens)
    grouping = method.group(View.of(tokens=x, num_kept=budget))
    labels = released_loop.cluster_frames(x, budget, 5, noise=0.0)
    assert torch.equal(labels, grouping.labels)
    off = {"roundings": 2 * tokens, "size": x.abs().max()}  # two means, of all tokens at most
    assert_near(released_loop.means_of_frames(x, labels, budget), grouping.apply(x), **off)
    means, places = released_loop.merge(x, rows, budget, 5, CONFIG.k, noise=0.0)
    assert_near(means, grouping.apply(x), **off)
    held = members(grouping, CONFIG.k, CONFIG.members)
    expected = torch.stack([some[:, picked].permute(0, 2, 1).flatten(0, 1) for some, picked in zip(rows, held)])
    assert torch.equal(places, expected)


def test_recorded_groups_and_means():
    recorded = load_file(RECORDED)
    frames = [name.removesuffix(".x") for name in recorded if name.endswith(".x")]
    assert len(frames) > 3
    for name in frames:
        x = recorded[f"{name}.x"][None]
        budget = CONFIG.span_tokens(1, x.shape[1])
        labels = released_loop.cluster(x, budget, 5, noise=0.0)
        assert torch.equal(labels[0], recorded[f"{name}.labels"].long())
        means = released_loop.means(x, labels, budget)[0]
        assert_near(means, recorded[f"{name}.merged"], roundings=2 * x.shape[1], size=x.abs().max())


def test_a_merge_is_timed_by_every_rule_of_members_beside_the_loop(tmp_path, capsys):
    output = tmp_path / "merge.json"
    (row,) = bench_merge.main(["--rounds", "1", "--shapes", "2,24,16", "--output", str(output)])
    assert list(row["ms"]) == [*bench_merge.OTHERS, "nearest", "spread"]
    assert CompressionConfig.preset("ppe").members in row["of"]
    assert row["of"]["spread"]["gram"] == pytest.approx(row["ms"]["spread"] / row["ms"]["gram"])
    assert json.loads(output.read_text())["rows"] == [row]
    head, told = (printed.split() for printed in capsys.readouterr().out.splitlines())
    assert "nearest / released" in " ".join(head)
    assert told[0] == "2x24x16"


class Operators(TorchDispatchMode):
    """Counts torch's operators, views among them."""

    count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += 1
        return function(*args, **(kwargs or {}))


def operators(k):
    x, rows = torch.ones(1, 12, 8), torch.arange(12).expand(1, 3, 12).contiguous()
    with Operators() as counted:
        released_loop.merge(x, rows, 6, 5, k)
    return counted.count


def test_positions_are_gathered_one_after_the_other_as_released():
    """The released code runs 202 operators for a frame with K = 8, counted in the same way; 211 with its settings."""
    assert 190 <= operators(8) <= 211
    each = {operators(k + 1) - operators(k) for k in range(2, 8)}
    assert len(each) == 1
    assert each.pop() > 10
