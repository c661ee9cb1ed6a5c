"""A real vLLM with the plug-in answers what compress(model) answers in transformers: make test-vllm.

Each engine runs in a process of its own (served.py). A wrong digit, row or position would be noticed: with one row of
one token off by one, no prompt is answered within the limit (test_situations.py), and ppe and keep_one, which keep
different positions of the same merged tokens, are apart by thousands of times as much.
"""

import json
from importlib.util import find_spec

import numpy as np
import pytest
from agreement import PROMISED, check

pytestmark = pytest.mark.skipif(find_spec("vllm") is None, reason="vLLM is not installed: make test-vllm")
THEN_CLUSTERS = json.dumps(
    {"steps": [{"method": "pixelprune", "threshold": 0.3}, {"method": "dpc_knn", "ratio": 0.5}], "k": 4}
)


@pytest.mark.parametrize(
    ("family", "compression"),
    [
        ("qwen2_5_vl", "keep_one"),
        # In order of their scores, two merged tokens whose scores agree to the sixth digit would change places.
        ("qwen2_5_vl", "chatunivi:order=raster"),
        ("qwen2_5_vl", "random:ratio=0.3,positions=ppe,k=3"),
        ("qwen2_vl", "ppe"),
        ("qwen3_vl", "ppe"),
        ("internvl", "ppe"),
        ("qwen2_vl", "pixelprune:max_kept=60,fill=true,positions=ppe"),
        ("qwen3_vl", THEN_CLUSTERS),
    ],
)
def test_each_prompt_is_answered_as_in_transformers(served, reference, family, compression):
    expected = reference(compression, family)
    assert any(len(answer["prompt"]) < answer["dense"] for answer in expected.values())
    check(served(compression, family)["alone"], expected)


def test_positions_beside_linear_attention(served, reference):
    """On a CPU, vLLM's takes only bf16, whose noise is larger than the effect of K positions, but has no direction:
    projected on the way from one kept position to K, over all tokens of a prompt, the answers have gone all of it."""
    family, kept = "qwen3_5", "uniform:positions={}"  # the same groups in any dtype
    found = served(kept.format("ppe,k=4"), family, {"dtype": "bfloat16"})["alone"]
    expected, one = (reference(kept.format(name), family) for name in ("ppe,k=4", "keep_one"))
    for name, answer in found.items():
        assert answer["length"] == len(expected[name]["prompt"]), name
        if name != "text":
            start = one[name]["prompt"][:-1]
            way = expected[name]["prompt"][:-1] - start
            assert 0.8 < ((answer["prompt"] - start) * way).sum() / (way * way).sum() < 1.2, name


def test_other_positions_of_the_same_tokens_are_other_answers(reference):
    ppe, keep_one = reference("ppe"), reference("keep_one")
    for name, answer in ppe.items():
        other = keep_one[name]
        assert answer["prompt"].shape == other["prompt"].shape
        difference = np.abs(answer["prompt"] - other["prompt"]).max()
        assert difference == 0 if name == "text" else difference > 100 * PROMISED
