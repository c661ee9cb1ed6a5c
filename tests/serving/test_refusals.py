"""vLLM settings that the plug-in refuses, each by its name; and that a real vLLM has settings of these names."""

import json
import pickle
from importlib.util import find_spec
from types import SimpleNamespace

import pytest
from scripts_of_serving import run_script

from ppe_npu.errors import InputError
from ppe_npu.serving.vllm.refusals import check_settings


def settings(**changed) -> SimpleNamespace:
    """A stand-in for a VllmConfig of defaults, with the parts that are read."""
    values = {
        "pipeline_parallel_size": 1, "use_ubatching": False, "prefill_context_parallel_size": 1, "pruned": False,
        "drafter": None, "tower_lora": None, "processor": None, "tower": "weights", "mrope": False,
        "state": None, "kept_state": "auto", **changed,
    }  # fmt: skip
    parallel = ("pipeline_parallel_size", "use_ubatching", "prefill_context_parallel_size")
    multimodal = SimpleNamespace(
        is_multimodal_pruning_enabled=lambda: values["pruned"],
        mm_processor_kwargs=values["processor"],
        mm_encoder_tp_mode=values["tower"],
    )
    drafter, lora = values["drafter"], values["tower_lora"]
    return SimpleNamespace(
        parallel_config=SimpleNamespace(**{name: values[name] for name in parallel}),
        model_config=SimpleNamespace(
            multimodal_config=multimodal,
            uses_mrope=values["mrope"],
            hf_text_config=SimpleNamespace(mamba_ssm_dtype=values["state"]),
        ),
        cache_config=SimpleNamespace(mamba_ssm_cache_dtype=values["kept_state"]),
        speculative_config=None if drafter is None else SimpleNamespace(method=drafter),
        lora_config=None if lora is None else SimpleNamespace(enable_tower_connector_lora=lora),
    )


def compression(at_pixels: object = None, axes: int = 3) -> SimpleNamespace:
    return SimpleNamespace(config=SimpleNamespace(at_pixels=at_pixels), axes=axes)


def test_what_can_be_is_taken():
    check_settings(settings(), compression())
    check_settings(settings(drafter="ngram", tower_lora=False, processor={"fps": 1}), compression())
    check_settings(settings(tower="data"), compression())
    check_settings(settings(state="float32", kept_state="float32"), compression())
    check_settings(settings(), compression(at_pixels=object()))
    check_settings(settings(mrope=True), compression(axes=1))


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"pipeline_parallel_size": 2}, "--pipeline-parallel-size 2"),
        ({"pruned": True}, "--video-pruning-rate"),
        ({"use_ubatching": True}, "--enable-dbo"),
        ({"prefill_context_parallel_size": 2}, "--prefill-context-parallel-size"),
        ({"drafter": "eagle3"}, "speculative decoding by eagle3"),
        ({"tower_lora": True}, "--enable-tower-connector-lora"),
        ({"processor": {"ppe_compression": {"ratio": 0.25}}}, "--mm-processor-kwargs with ppe_compression"),
        ({"state": "float32"}, "--mamba-ssm-cache-dtype float32"),
        ({"tower": "data"}, "--mm-encoder-tp-mode data with a step at the pixels"),
    ],
)
def test_what_cannot_be_is_refused_by_name(changed, said):
    with pytest.raises(InputError) as error:
        check_settings(settings(**changed), compression(at_pixels=object() if "tower" in changed else None))
    assert said in str(error.value)


def test_a_decoder_of_one_dimension_needs_the_key_that_has_vllm_keep_positions():
    with pytest.raises(InputError, match="the config has no mrope_section"):
        check_settings(settings(), compression(axes=1))


@pytest.mark.skipif(find_spec("vllm") is None, reason="vLLM is not installed: make test-vllm")
def test_a_real_vllm_reads_these_settings(tmp_path, checkpoint):
    refused = [
        ({"pipeline_parallel_size": 2}, "--pipeline-parallel-size 2"),
        ({"video_pruning_rate": 0.5}, "--video-pruning-rate"),
        ({"ubatch_size": 2, "all2all_backend": "deepep_low_latency"}, "--enable-dbo (or --ubatch-size)"),
        ({"enable_lora": True, "enable_tower_connector_lora": True}, "--enable-tower-connector-lora"),
        ({"mm_processor_kwargs": {"ppe_compression": {"ratio": 0.25}}}, "--mm-processor-kwargs with ppe_compression"),
        ({"mm_encoder_tp_mode": "data"}, "--mm-encoder-tp-mode data with a step at the pixels"),
    ]
    request, out = tmp_path / "request.json", tmp_path / "out.pickle"
    asked = {"folder": checkpoint(), "compression": "pixelprune:positions=ppe"}
    request.write_text(json.dumps({**asked, "refused": [{}, *(engine for engine, _ in refused)]}))
    run_script("served.py", str(request), str(out))
    plain, *found = pickle.loads(out.read_bytes())
    assert plain == ""
    for words, (_, said) in zip(found, refused, strict=True):
        assert said in words
