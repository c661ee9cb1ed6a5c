"""Asks vLLM the cases: main(REQUEST.json, OUT.pickle), in a process of its own (scripts_of_serving.py).

REQUEST: {"folder", "compression" (None: as the checkpoint says; "stock": vLLM's own class), "engine": arguments of
vllm.LLM, "rounds": ["alone", "together", "again", "asked", "adapted", "broken"], "asked": the settings that requests of
the round "asked" ask for, "adapter": the LoRA adapter of the round "adapted"}. In the round "broken", the first row of
the first token of each item is off by one position.

With "refused", arguments of engines, instead of the rounds: the plug-in's refusal of each; no engine is started.
"""

from __future__ import annotations

import json
import os
import pickle
from typing import Any

os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")  # otherwise its first answer takes a minute, even in eager mode
os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")  # two processes would need two NUMA nodes

import numpy as np
from cases import cases
from vllm import LLM, SamplingParams
from vllm.engine.arg_utils import EngineArgs
from vllm.lora.request import LoRARequest

from ppe_npu.errors import InputError
from ppe_npu.serving.rows import split_rows
from ppe_npu.serving.vllm import model as plug_in
from ppe_npu.serving.vllm.processing import compression_of
from ppe_npu.serving.vllm.refusals import check_settings

TOKENS = 16


def overrides(folder: str, compression: str | None) -> dict[str, Any]:
    """The value of --hf-overrides for a plain checkpoint."""
    if compression in (None, "stock"):
        return {}
    with open(f"{folder}/config.json") as file:
        (architecture,) = json.load(file)["architectures"]
    said = json.loads(compression) if compression[0] == "{" else compression
    plain = {"mrope_section": [64, 0, 0]} if architecture.startswith("InternVL") else {}
    return {"architectures": [f"PPE{architecture}"], "ppe_compression": said, **plain}


def table(rows: list[Any]) -> np.ndarray:
    """[L, V] log-probabilities of vLLM's dicts."""
    return np.array([[row[token].logprob for token in range(len(row))] for row in rows])


def result(output: Any) -> dict[str, Any]:
    own = output.outputs[0]
    return {
        "length": len(output.prompt_token_ids),
        "ids": list(output.prompt_token_ids),
        "tokens": list(own.token_ids),
        "steps": table(own.logprobs),
        "prompt": table(output.prompt_logprobs[1:]) if output.prompt_logprobs else None,
        "cached": output.num_cached_tokens,
    }


def one_off(joined: Any, rows: int) -> Any:
    """split_rows() with one wrong row."""
    features, local = split_rows(joined, rows)
    local[0, 0] += 1
    return features, local


def refusal(folder: str, compression: str, engine: dict[str, Any]) -> str:
    """What the plug-in says of vLLM's settings; an empty text if it takes them."""
    config = EngineArgs(folder, hf_overrides=overrides(folder, compression), **engine).create_engine_config()
    try:
        check_settings(config, compression_of(config.model_config.hf_config))
    except InputError as error:
        return str(error)
    return ""


def main(asked: str, out_file: str) -> None:
    with open(asked) as file:
        request = json.load(file)
    if "refused" in request:
        said = [refusal(request["folder"], request["compression"], engine) for engine in request["refused"]]
        with open(out_file, "wb") as file:
            pickle.dump(said, file)
        return
    engine = {"enforce_eager": True, "max_model_len": 2048, "max_logprobs": -1, "seed": 0, "dtype": "float32"}
    engine |= {"limit_mm_per_prompt": {"image": 4, "video": 2}} | request.get("engine", {})
    llm = LLM(request["folder"], hf_overrides=overrides(request["folder"], request.get("compression")), **engine)
    greedy = {"max_tokens": TOKENS, "temperature": 0, "logprobs": -1, "ignore_eos": True}
    whole, plain = SamplingParams(prompt_logprobs=-1, **greedy), SamplingParams(**greedy)
    prompts, out = [case.for_vllm() for case in cases()], {}
    for name in request.get("rounds", ["alone"]):
        plug_in.split_rows = one_off if name == "broken" else split_rows
        if name == "asked":
            asking = [case.for_vllm(request["asked"]) for case in cases()]
            outputs = llm.generate(asking, plain, use_tqdm=False)
        elif name == "adapted":
            adapter = LoRARequest("adapter", 1, request["adapter"])
            outputs = llm.generate(prompts, plain, use_tqdm=False, lora_request=adapter)
        elif name in ("alone", "broken"):
            outputs = [llm.generate(prompt, whole, use_tqdm=False)[0] for prompt in prompts]
        else:
            outputs = llm.generate(prompts, whole if name == "together" else plain, use_tqdm=False)
        out[name] = {case.name: result(output) for case, output in zip(cases(), outputs)}
    metrics = [] if engine.get("disable_log_stats", True) else llm.get_metrics()
    out["preemptions"] = sum(metric.value for metric in metrics if metric.name == "vllm:num_preemptions")
    with open(out_file, "wb") as file:
        pickle.dump(out, file)
