"""A benchmark of pictures or videos that shows none is refused before a model is asked; one question in text is not."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image
from stand_in import Instant

from ppe_npu.errors import InputError
from ppe_npu.evaluation.identity import data_fingerprints
from ppe_npu.evaluation.runner import Evaluation

PICTURE = Image.new("RGB", (8, 8))


class Key:
    """Samples with the given fields beside their question."""

    name = "Key"

    def __init__(self, *fields: dict, modality: str = "image") -> None:
        self.fields, self.modality = fields, modality

    def __len__(self) -> int:
        return len(self.fields)

    def __getitem__(self, number: int) -> dict:
        return {"index": number, "prompt": "Which?", "GT": "a", **self.fields[number]}


@pytest.fixture
def file(tmp_path):
    PICTURE.save(tmp_path / "cat.png")
    return str(tmp_path / "cat.png")


@pytest.mark.parametrize(
    ("fields", "modality", "said"),
    [
        ({"img": PICTURE}, "image", "no picture (its keys: index, prompt, GT, img): give image or image_path"),
        ({"img": np.zeros((8, 8, 3))}, "image", "no picture (its keys: index, prompt, GT, img): give image or"),
        ({"images": [PICTURE, PICTURE]}, "image", "no picture (its keys: index, prompt, GT, images): give image or"),
        ({"path": "FILE"}, "image", "no picture (its keys: index, prompt, GT, path): give image or image_path"),
        ({"video": "FILE"}, "video", "no video (its keys: index, prompt, GT, video): give video_path"),
    ],
)
def test_a_picture_under_a_misspelt_key_is_refused_by_name(tmp_path, file, fields, modality, said):
    """Though another sample has one, so that a question in text alone would be legal."""
    fields = {key: file if str(value) == "FILE" else value for key, value in fields.items()}
    benchmark = Key({"image": PICTURE}, fields, modality=modality)
    with pytest.raises(InputError) as caught:
        Evaluation(Instant(), benchmark, tmp_path / "out", bar=False)
    assert f"sample 1 of benchmark Key has modality {modality} and {said}" in str(caught.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("modality", "what"), [("image", "picture"), ("video", "video")])
def test_a_benchmark_none_of_whose_samples_shows_anything_is_refused(tmp_path, modality, what):
    with pytest.raises(InputError) as caught:
        data_fingerprints(Key({"img": "gone.png"}, {}, modality=modality))
    asked = "image or image_path" if modality == "image" else "video_path"
    said = f"benchmark Key has modality {modality}, but none of its samples has a {what} (keys of the first: index, "
    assert str(caught.value) == f'{said}prompt, GT, img): give {asked}, or set modality = "text"'


def test_questions_in_text_alone_stay_legal(tmp_path, file):
    """Beside samples with pictures, whatever else they hold; and in a benchmark of texts."""
    more = {"source": "exam.pdf", "options": ["a", "b"], "folder": str(tmp_path), "weights": np.zeros(3), "level": 2}
    assert data_fingerprints(Key({"image": PICTURE}, more, {"image": None}))
    assert data_fingerprints(Key({"image_path": file}, {}))
    assert data_fingerprints(Key({"img": file}, modality="text"))
    assert data_fingerprints(Key({"image": PICTURE}, modality="video"))


def test_a_picture_that_cannot_be_read_counts_as_one():
    class Broken(dict):
        def get(self, key, default=None):
            if key == "image":
                raise OSError("broken data stream")
            return super().get(key, default)

    class Rotten(Key):
        def __getitem__(self, number):
            return Broken(super().__getitem__(number))

    assert data_fingerprints(Rotten({}))
