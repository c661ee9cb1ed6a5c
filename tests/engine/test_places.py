"""Places of tokens, by which the host groups them: frame, row and column within their own image or video."""

import numpy as np

from ppe_npu.engine.plan import feature_places
from ppe_npu.engine.spans import VisionTokens, find_spans

IMAGE_ID, VIDEO_ID = 1, 2


def places(ids, images, videos, frames_apart):
    vision = VisionTokens(IMAGE_ID, VIDEO_ID, 2, None, frames_apart)
    return feature_places(find_spans(np.array(ids), None, images, videos, None, vision))


def test_places_are_counted_in_the_order_of_features_from_each_images_own_corner():
    ids = [[0, VIDEO_ID, VIDEO_ID, 0, IMAGE_ID, IMAGE_ID], [IMAGE_ID, 0, 0, 0, 0, 0]]
    found = places(ids, [(1, 4, 2), (1, 2, 2)], [(2, 2, 2)], False)
    assert found.tolist() == [[0, 0, 0], [0, 1, 0], [0, 0, 0], [0, 0, 0], [1, 0, 0]]


def test_frames_that_stand_apart_are_counted_on_within_their_video():
    ids = [[VIDEO_ID, 0, VIDEO_ID, 0, VIDEO_ID, 0, VIDEO_ID]]
    layout = [(2, 2, 2), (2, 2, 2)]
    assert places(ids, [], layout, True)[:, 0].tolist() == [0, 1, 0, 1]
