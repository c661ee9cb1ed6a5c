"""TRL's fused head on a compressed model, in both orders; needs trl, datasets, accelerate >= 1.10."""

import pytest
import torch
from foreign import SETTINGS, compressed, pictures, random_model

from ppe_npu import compress

utils = pytest.importorskip("trl.trainer.utils", reason="trl is not installed: see docs/compatibility.md")


@pytest.mark.parametrize("first", ["compress", "head"])
@pytest.mark.parametrize("setting", SETTINGS)
@torch.no_grad()
def test_the_fused_head_scores_what_the_models_own_loss_does(setting, first):
    inputs, plain = pictures(), random_model()
    labels = torch.full_like(inputs["input_ids"], -100)
    labels[:, -4:] = inputs["input_ids"][:, -4:]
    expected = compressed(plain, setting)(**inputs, labels=labels).loss
    if first == "head":
        utils.add_fused_lm_head(plain)
    model = compress(plain, SETTINGS[setting])
    if first == "compress":
        utils.add_fused_lm_head(model)
    for others in ({}, {"use_cache": False}):
        found = model(**inputs, **others, labels=labels, fused_lm_head=True).loss
        assert (found - expected).abs() <= 64 * torch.finfo(expected.dtype).eps * expected
