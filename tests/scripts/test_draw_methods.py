"""The sheets of every method's groups."""

import draw_methods
import numpy as np
import pytest
from PIL import Image

from ppe_npu.demo import tiny
from ppe_npu.methods.listing import grouping


@pytest.mark.parametrize("frames", [1, draw_methods.FRAMES])
def test_a_panel_shows_the_groups_that_a_pass_made(frames):
    """In every frame, PACT drops some tokens, which are dark, and keeps the fraction that was asked for."""
    shown = draw_methods.pictures()[:frames]
    model, processor = tiny.build_model(0).eval(), tiny.build_processor()
    groups = draw_methods.groups_of(model, processor, draw_methods.config_of("pact", 0.25), shown)
    assert (groups.labels.size, len(groups.representatives)) == (36 * frames, 9 * frames)
    strip = np.asarray(draw_methods.draw_strip(shown, groups, 72))
    assert strip.shape == (72, 75 * frames - 3, 3)
    gone = np.concatenate([groups.labels < 0], axis=0).reshape(frames, 6, 6)
    assert gone.any()
    for step in range(frames):
        frame = strip[:, 75 * step : 75 * step + 72].reshape(6, 12, 6, 12, 3)
        assert (frame[:, 4:9, :, 4:9].max(axis=(1, 3, 4)) <= 63)[gone[step]].all()
        assert (frame[:, 4:9, :, 4:9].max(axis=(1, 3, 4)) > 63)[~gone[step]].any()


def test_every_method_has_a_setting_and_a_sheet_is_a_picture(tmp_path):
    assert [name for name in grouping() if draw_methods.config_of(name, 0.25) is None] == []
    panels = [(name, Image.new("RGB", (144, 144), "red")) for name in grouping()]
    (tmp_path / "sheet.png").write_bytes(draw_methods.sheet(panels, draw_methods.COLUMNS))
    width, height = Image.open(tmp_path / "sheet.png").size
    rows = -(-len(panels) // draw_methods.COLUMNS)
    assert (width, height) == (6 * 152 + 8, rows * (144 + draw_methods.LINE + draw_methods.GAP) + draw_methods.GAP)
