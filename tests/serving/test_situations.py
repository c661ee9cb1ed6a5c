"""Whatever a real vLLM does with prompts and caches, it answers as compress(model) in transformers: make test-vllm.

Batches, chunks, prefix hits, preemption, a ratio of one request, adapters, two processes; and a wrong row is noticed.
"""

from importlib.util import find_spec

import pytest
from agreement import apart, check, hit_inside_a_span, limit
from scripts_of_serving import run_script

pytestmark = pytest.mark.skipif(find_spec("vllm") is None, reason="vLLM is not installed: make test-vllm")
CHUNKS = {  # no image but the smallest fits a step or a block; a few blocks for six prompts
    "max_num_batched_tokens": 48, "enable_chunked_prefill": True, "block_size": 32, "num_gpu_blocks_override": 14,
    "max_model_len": 320, "max_num_seqs": 6, "disable_log_stats": False,
}  # fmt: skip


def test_unequal_prompts_in_one_batch_and_a_wrong_row(served, reference):
    few = {"max_num_batched_tokens": 512}  # the tower is given no more at once, of a step that keeps as many
    found, expected = served("ppe", engine=few, rounds=["alone", "together", "broken"]), reference("ppe")
    check(found["alone"], expected)
    check(found["together"], expected)
    for name, answer in found["broken"].items():
        assert (apart(answer, expected[name]) > 2 * limit(expected)) == (name != "text"), name


def test_chunks_of_48_prefix_hits_inside_a_span_and_preemption(served, reference):
    found = served("ppe", engine=CHUNKS, rounds=["alone", "together", "again"])
    for name in ("alone", "together", "again"):
        check(found[name], reference("ppe"))
    assert found["preemptions"] > 0
    assert any(map(hit_inside_a_span, found["again"].values()))


def test_pixels_in_chunks_of_48_with_prefix_hits_inside_a_span(served, reference):
    """Each picture decides how many of its cells stay."""
    compression = "pixelprune:threshold=0.3,max_kept=150,positions=ppe"
    engine = {**CHUNKS, "num_gpu_blocks_override": 40, "disable_log_stats": True}  # enough for all six prompts
    found = served(compression, engine=engine, rounds=["alone", "again"])
    for name in ("alone", "again"):
        check(found[name], reference(compression))
    assert any(map(hit_inside_a_span, found["again"].values()))


def test_a_ratio_of_one_request_and_an_adapter(served, tmp_path_factory, checkpoint, reference):
    """On one server, each request finds its own entries in the caches, and no other's."""
    adapter, merged = tmp_path_factory.mktemp("adapter"), tmp_path_factory.mktemp("merged")
    run_script("adapters.py", checkpoint(), str(adapter), str(merged))
    more = {"asked": {"ratio": 0.25}, "adapter": str(adapter)}
    lora = {"enable_lora": True, "max_lora_rank": 8}
    found = served("ppe", engine=lora, rounds=["alone", "asked", "again", "adapted"], **more)
    check(found["alone"], reference("ppe"))
    check(found["asked"], reference("ppe:ratio=0.25"))
    check(found["again"], reference("ppe"))
    check(found["adapted"], reference("ppe", folder=str(merged)))
    assert max(answer["cached"] for answer in found["again"].values()) >= 32


def test_two_processes_share_the_tensors(served, reference):
    check(served("ppe", engine={"tensor_parallel_size": 2})["alone"], reference("ppe"))
