"""What compress(model) answers in transformers: the right answer for any engine that serves it.

main(FOLDER, COMPRESSION, OUT), in a process of its own (scripts_of_serving.py). COMPRESSION: a text as on the command
line, or JSON.
"""

from __future__ import annotations

import json
import pickle
from typing import Any

import numpy as np
import torch
import transformers
from cases import cases
from tolerances import exact

from ppe_npu import compress
from ppe_npu.compat import drop_unknown_types
from ppe_npu.serving.settings import compression_config

TOKENS = 16


def answers(folder: str, compression: str) -> dict[str, dict[str, Any]]:
    """For each case: the prompt's log-probabilities [L, V] after compression, the greedy tokens, theirs [16, V], and
    fp32's error in the prompt ("error"; None with linear attention, which is fp32 in transformers anyway)."""
    processor = transformers.AutoProcessor.from_pretrained(folder)
    config = transformers.AutoConfig.from_pretrained(folder)
    made = getattr(transformers, config.architectures[0])
    model = made.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    compress(model, compression_config(json.loads(compression) if compression[0] == "{" else compression))
    inputs = {case.name: drop_unknown_types(model, case.for_transformers(processor)) for case in cases()}
    found = {name: _answer(model, own) for name, own in inputs.items()}
    if config.model_type != "qwen3_5":
        exact(model, lambda: [found[name].update(error=_error(model, inputs[name], found[name])) for name in found])
    return found


@torch.inference_mode()
def _answer(model: Any, inputs: Any) -> dict[str, Any]:
    logits = model(**inputs).logits[0]
    settings = {"max_new_tokens": TOKENS, "do_sample": False, "eos_token_id": None}
    out = model.generate(**inputs, **settings, return_dict_in_generate=True, output_logits=True)
    length = inputs["input_ids"].shape[1]
    return {
        "dense": length,
        "prompt": logits.log_softmax(-1).numpy(),
        "tokens": out.sequences[0, length:].tolist(),
        "steps": torch.stack(out.logits)[:, 0].log_softmax(-1).numpy(),
        "error": None,
    }


@torch.inference_mode()
def _error(model: Any, inputs: Any, found: dict[str, Any]) -> float:
    """The largest difference of the prompt's log-probabilities from those of the model in fp64."""
    given = {key: value.double() if value.is_floating_point() else value for key, value in inputs.items()}
    return float(np.abs(found["prompt"] - model(**given).logits[0].log_softmax(-1).numpy()).max())


def main(folder: str, compression: str, out: str) -> None:
    torch.set_num_threads(1)
    found = answers(folder, compression)
    with open(out, "wb") as file:
        pickle.dump(found, file)
