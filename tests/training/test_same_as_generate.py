"""Training and generate() give a model the same tokens, pixels and positions, and get the same logits."""

from __future__ import annotations

import json

import pytest
import torch
from tolerances import assert_rounds_alike, exact

from ppe_npu import CompressionConfig, compress
from ppe_npu.checkpoints.loading import load_model
from ppe_npu.data.inputs import build_inputs
from ppe_npu.data.sampling import VideoSampling
from ppe_npu.training.collator import NOTES, Collator
from ppe_npu.training.data import read_records

SAMPLING = VideoSampling(nframes=4)


@pytest.mark.parametrize(
    "settings",
    [
        {"positions": "ppe", "k": 4},
        {"positions": "ppe", "k": 4, "layers": [1], "ratio": 0.3},
        {"positions": "renumber", "k": 1, "order": "score", "temporal_ratio": 0.5},
    ],
)
def test_the_logits_of_training_are_those_of_prefill(
    settings, tiny_folder, tiny_processor, write_image, write_clip, tmp_path
):
    turns = [
        {"from": "system", "value": "short answers"},
        {"from": "human", "value": "row <image> red"},
        {"from": "gpt", "value": "3"},
        {"from": "human", "value": "<video>\ncol blue"},
        {"from": "gpt", "value": "4"},
    ]
    records = [
        {"image": write_image("a.png", 0, (96, 64)), "video": write_clip("a.mp4"), "conversations": turns},
        {"conversations": [{"from": "human", "value": "row red"}, {"from": "gpt", "value": "1"}]},
        {"image": write_image("b.png", 1), "conversations": [turns[1], turns[2]]},
    ]
    (tmp_path / "data.json").write_text(json.dumps(records))
    records = read_records(tmp_path / "data.json")
    model = compress(load_model(tiny_folder), CompressionConfig(**settings))
    collator = Collator(tiny_processor, model.compression.vision, SAMPLING)
    batch = {key: value for key, value in collator(records).items() if key not in NOTES}
    with torch.no_grad():
        trained = model(**batch)
        packed = model(**batch, packed=True)
    at, rows = 0, []
    for number, record in enumerate(records):
        question = record.messages()[:-1]  # without the answer that it is about to learn
        asked = build_inputs(tiny_processor, [question], sampling=SAMPLING)
        options = {"max_new_tokens": 1, "do_sample": False, "output_logits": True, "return_dict_in_generate": True}
        options |= {key: value for key, value in asked.items() if key != "mm_token_type_ids"}
        out, true = model.generate(**options), exact(model, lambda options=options: model.generate(**options))
        length = model.compression.report.prompt_tokens_after
        ways = trained.logits[number, length - 1], packed.logits[0, at + length - 1]
        rows.append((*ways, out.logits[0][0], true.logits[0][0]))
        # The next sample begins after this one's answer and its end.
        labels = trained.labels[number]
        at += int((labels != -100).nonzero().max()) + 1 + _tail(tiny_processor, record)
    trained, packed, asked, true = map(list, zip(*rows))
    for found in (trained, packed):
        assert_rounds_alike(found, asked, true)


def _tail(processor, record) -> int:
    """Tokens of the template after the last labelled one."""
    from ppe_npu.backends.common import IGNORED
    from ppe_npu.training.tokens import Tokeniser

    labels = Tokeniser(processor)(record).labels
    return len(labels) - 1 - int((labels != IGNORED).nonzero()[0].max())
