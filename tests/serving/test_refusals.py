"""What of vLLM's settings the plug-in refuses, each by its name; vLLM itself is not needed."""

from types import SimpleNamespace

import pytest

from ppe_npu.errors import InputError
from ppe_npu.serving.vllm.refusals import check_settings


def settings(**changed) -> SimpleNamespace:
    """A VllmConfig of defaults, as far as it is read."""
    values = {
        "pipeline_parallel_size": 1, "use_ubatching": False, "prefill_context_parallel_size": 1, "pruned": False,
        "drafter": None, "tower_lora": None, **changed,
    }  # fmt: skip
    parallel = ("pipeline_parallel_size", "use_ubatching", "prefill_context_parallel_size")
    multimodal = SimpleNamespace(is_multimodal_pruning_enabled=lambda: values["pruned"])
    drafter, lora = values["drafter"], values["tower_lora"]
    return SimpleNamespace(
        parallel_config=SimpleNamespace(**{name: values[name] for name in parallel}),
        model_config=SimpleNamespace(multimodal_config=multimodal),
        speculative_config=None if drafter is None else SimpleNamespace(method=drafter),
        lora_config=None if lora is None else SimpleNamespace(enable_tower_connector_lora=lora),
    )


def test_what_can_be_is_taken():
    check_settings(settings())
    check_settings(settings(drafter="ngram", tower_lora=False))


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"pipeline_parallel_size": 2}, "--pipeline-parallel-size 2"),
        ({"pruned": True}, "--video-pruning-rate"),
        ({"use_ubatching": True}, "--enable-dbo"),
        ({"prefill_context_parallel_size": 2}, "--prefill-context-parallel-size"),
        ({"drafter": "eagle3"}, "speculative decoding by eagle3"),
        ({"tower_lora": True}, "--enable-tower-connector-lora"),
    ],
)
def test_what_cannot_be_is_refused_by_name(changed, said):
    with pytest.raises(InputError) as error:
        check_settings(settings(**changed))
    assert said in str(error.value)
