"""Flat areas of a screen have the same groups at every batch size and with any number of threads."""

import pytest
import torch
from PIL import Image, ImageDraw

from ppe_npu import backends
from ppe_npu.checkpoints.loading import load_model
from ppe_npu.data.inputs import build_inputs


def screen(number: int) -> Image.Image:
    """A picture of 112 x 112 pixels: a grey ground, two boxes and a line, slightly different for every number."""
    image = Image.new("RGB", (112, 112), (240, 240, 240))
    draw = ImageDraw.Draw(image)
    draw.rectangle((8, 8 + 4 * number, 40, 40), fill=(200, 30, 30))
    draw.rectangle((60, 50, 100, 90 + number), fill=(20, 30, 200))
    draw.line((0, 100, 111, 100 - number), fill=0)
    return image


@pytest.fixture
def features(tiny_folder, tiny_processor):
    """features(screens, threads): a list of the features [N, C] of each screen, computed in one batch."""
    model, before = load_model(tiny_folder).eval(), torch.get_num_threads()

    def run(screens, threads):
        torch.set_num_threads(threads)
        content = [[{"type": "image", "image": image}, {"type": "text", "text": "row red"}] for image in screens]
        inputs = build_inputs(tiny_processor, [[{"role": "user", "content": parts}] for parts in content])
        with torch.no_grad():
            found = model.model.get_image_features(inputs["pixel_values"], inputs["image_grid_thw"])
        return getattr(found, "pooler_output", found)

    yield run
    torch.set_num_threads(before)


def test_the_same_groups_at_batch_1_and_8_with_1_and_2_threads(features):
    def groups(tokens):
        budget = torch.tensor([int(tokens.shape[0] * 0.45)])
        return backends.dpc_knn(tokens[None], None, budget, int(budget), torch.tensor([5]))

    screens = [screen(number) for number in range(8)]
    expected = [groups(tokens) for tokens in features(screens, 1)]
    for threads in (1, 2):
        for image, whole in zip(screens, expected):
            for found, wanted in zip(groups(features([image], threads)[0]), whole):
                assert torch.equal(found, wanted)
