"""Prompts that a caller gives as embeddings give the same results as their ids."""

import pytest
import torch
from prompts import GREEDY, MIXED, PRESETS, logits
from support import batch
from tolerances import assert_rounds_alike, exact

from ppe_npu import compress


def test_embeddings_given_by_the_caller(model):
    compress(model, PRESETS["both"])
    inputs = batch(*MIXED)
    expected, true = logits(model, inputs), exact(model, lambda: logits(model, inputs))
    embed = model.get_input_embeddings()
    embeds = embed(inputs["input_ids"])
    # Embeddings replace the ids: placeholders are recognized by their embedding.
    alone = {name: value for name, value in inputs.items() if name != "input_ids"} | {"inputs_embeds": embeds}
    assert torch.equal(logits(model, alone), expected)
    # Embeddings already contain the features, and there are no pixels.
    tower = model.model.visual
    for kind, name, token in (("image", "pixel_values", 90), ("video", "pixel_values_videos", 91)):
        features = tower(inputs[name], grid_thw=inputs[f"{kind}_grid_thw"]).pooler_output
        embeds = embeds.masked_scatter((inputs["input_ids"] == token)[..., None], features)
    placed = {name: value for name, value in inputs.items() if not name.startswith("pixel")} | {"inputs_embeds": embeds}
    assert_rounds_alike(logits(model, placed), expected, true)  # the tower ran in other batches


@pytest.mark.parametrize("repeats", [{}, {"num_beams": 2}, {"num_beams": 2, "num_return_sequences": 2}])
def test_generation_from_embeddings(model, repeats):
    compress(model, PRESETS["cascade"])
    inputs, settings = batch(*MIXED), {"max_new_tokens": 4, **GREEDY, **repeats}
    expected = model.generate(**inputs, **settings)[:, -4:]
    embeds = model.get_input_embeddings()(inputs.pop("input_ids"))
    assert torch.equal(model.generate(**inputs, inputs_embeds=embeds, **settings), expected)
