"""A compression of one request: what it may change, how it travels, and what is refused."""

import pytest
import torch
from support import IMAGE_ID, VIDEO_ID

from ppe_npu import CompressionConfig
from ppe_npu.engine.compression import Compression
from ppe_npu.engine.pixels import PixelValues
from ppe_npu.engine.positions import contiguous_channels
from ppe_npu.engine.spans import VisionTokens
from ppe_npu.errors import InputError
from ppe_npu.serving.asked import Asked, written
from ppe_npu.serving.settings import identity

VISION = VisionTokens(IMAGE_ID, VIDEO_ID, 2, 2, pixels=PixelValues(2, (0.5,) * 3, (0.5,) * 3))


def server(config: CompressionConfig | None = None) -> Asked:
    config = config or CompressionConfig.preset("ppe", ratio=0.5, k=4)
    return Asked(Compression(config, VISION, contiguous_channels([16, 24, 24]), 4))


def test_a_request_changes_what_it_names_alone():
    asked = server()
    assert asked.of(None) is asked.own
    made = asked.of({"ratio": 0.25})
    assert made.config == CompressionConfig.preset("ppe", ratio=0.25, k=4)
    assert made.vision is asked.own.vision
    assert made.channels == asked.own.channels
    assert asked.of({"ratio": 0.25}) is made
    assert asked.own.config == CompressionConfig.preset("ppe", ratio=0.5, k=4)


def test_it_travels_with_each_item():
    asked = server()
    sent = written({"ratio": 0.25}, 3)
    assert sent.dtype == torch.uint8
    assert [asked.read(row) for row in sent] == [asked.of({"ratio": 0.25})] * 3
    assert asked.read(written(None, 1)[0]) is asked.own


def test_a_request_has_the_key_of_a_server_that_is_started_so():
    asked = server().of({"ratio": 0.25}).config
    assert identity(asked) == identity(CompressionConfig.preset("ppe", ratio=0.25, k=4))
    assert identity(asked) != identity(server().own.config)


def test_a_step_of_several_is_changed_by_its_own_key():
    steps = [{"method": "pixelprune", "max_kept": 64}, {"method": "dpc_knn", "ratio": 0.5}]
    made = server(CompressionConfig(steps=steps, k=4)).of({"max_kept": 16, "ratio": 0.3})
    assert [method.kept(100) for method in made.config.methods] == [16, 30]


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ("ratio=0.25", "give a mapping"),
        ({"ratio": 2}, "ratio=2"),
        ({"ratoi": 0.5}, "ratoi"),
        ({"k": 8}, "k=8: requests cannot change the server's 4"),
        ({"positions": "keep_one"}, "positions='keep_one'"),
        ({"layers": [1]}, "layers=[1]: a server's KV cache has one length"),
        ({"steps": [{"method": "visionzip"}]}, "steps"),
        ({"ratio": {0.5}}, "written as JSON"),
    ],
)
def test_what_cannot_be_asked_for_is_refused_by_name(values, said):
    with pytest.raises(InputError) as error:
        server().of(values)
    assert said in str(error.value)


def test_steps_at_the_pixels_are_the_servers():
    plain = server(CompressionConfig(steps=[{"method": "uniform"}], k=4))
    with pytest.raises(InputError, match="only the server sets whether there is a step at the pixels"):
        plain.of({"steps": [{"method": "pixelprune", "max_kept": 4}]})


def test_a_request_keeps_no_more_than_its_server():
    asked = server()
    asked.check_room(asked.of({"ratio": 0.25}), "image", [1, 20, 20])
    with pytest.raises(InputError, match="may keep 60 tokens of its image, but this server has room for 50"):
        asked.check_room(asked.of({"ratio": 0.6}), "image", [1, 20, 20])
