"""A real vLLM with the plug-in answers what compress(model) answers in transformers: make test-vllm.

Each engine runs in a process of its own (served.py). A wrong digit, row or position shows: ppe and keep_one, which keep
other positions of the same merged tokens, are apart by thousands of times the limit.
"""

import json
import pickle
from importlib.util import find_spec

import numpy as np
import pytest
from scripts_of_serving import run_script

pytestmark = pytest.mark.skipif(find_spec("vllm") is None, reason="vLLM is not installed: make test-vllm")
LIMIT = 5e-4  # of a log-probability, fp32, over the whole vocabulary; plain vLLM is 1.3e-4 from plain transformers
CHUNKS = {  # no image but the smallest fits a step or a block; a few blocks for six prompts
    "max_num_batched_tokens": 48, "enable_chunked_prefill": True, "block_size": 32, "num_gpu_blocks_override": 14,
    "max_model_len": 320, "max_num_seqs": 6, "disable_log_stats": False,
}  # fmt: skip


THEN_CLUSTERS = json.dumps(
    {"steps": [{"method": "pixelprune", "threshold": 0.3}, {"method": "dpc_knn", "ratio": 0.5}], "k": 4}
)


@pytest.fixture
def served(tmp_path, checkpoint):
    """served(compression, family, engine, rounds) -> what vLLM answers; more: of the request, see served.py."""

    def answers(
        compression: str, family: str = "qwen2_5_vl", engine: dict | None = None, rounds=("alone",), **more
    ) -> dict:
        request, out = tmp_path / "request.json", tmp_path / "out.pickle"
        asked = {"folder": checkpoint(family), "compression": compression, "engine": engine or {}, "rounds": rounds}
        asked |= more
        request.write_text(json.dumps(asked))
        run_script("served.py", str(request), str(out))
        return pickle.loads(out.read_bytes())

    return answers


def apart(found: dict, expected: dict) -> float:
    """The largest difference of a log-probability of the prompt [L - 1, V], or of the answer's tokens [16, V]."""
    differences = [np.abs(found["steps"] - expected["steps"]).max()]
    if found["prompt"] is not None:
        assert found["prompt"].shape == expected["prompt"][:-1].shape
        differences.append(np.abs(found["prompt"] - expected["prompt"][:-1]).max())
    return float(max(differences))


def check(found: dict, expected: dict) -> None:
    for name, answer in found.items():
        assert answer["length"] == len(expected[name]["prompt"]), name
        assert answer["tokens"] == expected[name]["tokens"], name
        assert apart(answer, expected[name]) <= LIMIT, name


@pytest.mark.parametrize(
    ("family", "compression"),
    [
        ("qwen2_5_vl", "keep_one"),
        # In order of their scores two merged tokens that score alike to the sixth digit would change places.
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
    """On a CPU vLLM's takes bf16 alone, whose noise is above what K positions change. It points nowhere: of the way
    from one kept position to K, at every token of a prompt, the answers have gone all of it."""
    family, kept = "qwen3_5", "uniform:positions={}"  # the same groups in any dtype
    found = served(kept.format("ppe,k=4"), family, {"dtype": "bfloat16"})["alone"]
    expected, one = (reference(kept.format(name), family) for name in ("ppe,k=4", "keep_one"))
    for name, answer in found.items():
        assert answer["length"] == len(expected[name]["prompt"]), name
        if name != "text":
            start = one[name]["prompt"][:-1]
            way = expected[name]["prompt"][:-1] - start
            assert 0.8 < ((answer["prompt"] - start) * way).sum() / (way * way).sum() < 1.2, name


def test_unequal_prompts_in_one_batch(served, reference):
    found = served("ppe", rounds=["alone", "together"])
    check(found["alone"], reference("ppe"))
    check(found["together"], reference("ppe"))


def test_chunks_of_48_prefix_hits_inside_a_span_and_preemption(served, reference):
    found = served("ppe", engine=CHUNKS, rounds=["alone", "together", "again"])
    for name in ("alone", "together", "again"):
        check(found[name], reference("ppe"))
    assert found["preemptions"] > 0
    assert max(answer["cached"] for answer in found["again"].values()) >= 32


def test_pixels_in_chunks_of_48_with_prefix_hits_inside_a_span(served, reference):
    """How many cells of each picture stay is the picture's matter."""
    compression = "pixelprune:threshold=0.3,max_kept=150,positions=ppe"
    engine = {**CHUNKS, "num_gpu_blocks_override": 40, "disable_log_stats": True}  # which hold all six prompts
    found = served(compression, engine=engine, rounds=["alone", "again"])
    for name in ("alone", "again"):
        check(found[name], reference(compression))
    assert max(answer["cached"] for answer in found["again"].values()) >= 32


def test_a_ratio_of_one_request_and_an_adapter(served, tmp_path_factory, checkpoint, reference):
    """Of one server: each finds its own in the caches, and no other's."""
    adapter, merged = tmp_path_factory.mktemp("adapter"), tmp_path_factory.mktemp("merged")
    run_script("adapters.py", checkpoint(), str(adapter), str(merged))
    out = tmp_path_factory.mktemp("reference") / "answers.pickle"
    run_script("reference.py", str(merged), str(out), "ppe")
    more = {"asked": {"ratio": 0.25}, "adapter": str(adapter)}
    lora = {"enable_lora": True, "max_lora_rank": 8}
    found = served("ppe", engine=lora, rounds=["alone", "asked", "again", "adapted"], **more)
    check(found["alone"], reference("ppe"))
    check(found["asked"], reference("ppe:ratio=0.25"))
    check(found["again"], reference("ppe"))
    check(found["adapted"], pickle.loads(out.read_bytes())["ppe"])
    assert max(answer["cached"] for answer in found["again"].values()) >= 32


def test_two_processes_share_the_tensors(served, reference):
    check(served("ppe", engine={"tensor_parallel_size": 2})["alone"], reference("ppe"))


def test_other_positions_of_the_same_tokens_are_other_answers(reference):
    ppe, keep_one = reference("ppe"), reference("keep_one")
    for name, answer in ppe.items():
        other = keep_one[name]
        assert answer["prompt"].shape == other["prompt"].shape
        difference = np.abs(answer["prompt"] - other["prompt"]).max()
        assert difference == 0 if name == "text" else difference > 100 * LIMIT
