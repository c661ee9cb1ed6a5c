"""fingerprint() depends on weights and their names alone: equal for equal weights, different for others."""

from __future__ import annotations

import pytest
import torch
from support import random_model

from ppe_npu import CompressionConfig, compress
from ppe_npu.models.fingerprint import fingerprint
from ppe_npu.models.fused import fuse


def test_it_hangs_on_weights_and_names_alone(model):
    found = fingerprint(model)
    assert len(found) == 16
    assert fingerprint(random_model()) == found
    compress(fuse(model), CompressionConfig.preset("ppe", k=4))
    assert fingerprint(model) == found
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    assert fingerprint(model.train()) == found
    assert fingerprint(random_model(seed=1)) != found
    assert fingerprint(torch.nn.ModuleDict({"inner": random_model()})) != found


@pytest.mark.parametrize(
    "name", ["lm_head.weight", "model.visual.merger.ln_q.weight", "model.language_model.norm.weight"]
)
def test_a_step_of_any_parameter_changes_it(model, name):
    found = fingerprint(model)
    with torch.no_grad():
        model.get_parameter(name).add_(1e-3)
    assert fingerprint(model) != found
