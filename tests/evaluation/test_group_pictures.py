"""Pictures of samples in the HTML report: of one picture, of several, and of the frames of videos."""

from __future__ import annotations

import itertools
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from report_runs import write_run

from ppe_npu.checkpoints.loading import load_model
from ppe_npu.config import CompressionConfig
from ppe_npu.data.sampling import VideoSampling
from ppe_npu.evaluation import group_pictures, page
from ppe_npu.evaluation.answers import ModelAnswers
from ppe_npu.models import compress


@pytest.fixture(scope="module")
def compressed(tiny_folder, tiny_processor):
    """ModelAnswers of the tiny model with a quarter of its visual tokens."""
    model = compress(load_model(tiny_folder), CompressionConfig.preset("keep_one", ratio=0.25))
    return ModelAnswers(model, tiny_processor, 50, VideoSampling(fps=4.0))


def drawn(folder, name, answers, sample):
    """The picture of a sample, if there is one."""
    if not group_pictures.draw(folder, name, answers, [sample]):
        return None
    with Image.open(group_pictures._path(folder, name, sample["index"])) as picture:
        return picture.convert("RGB")


@pytest.mark.parametrize(("frames", "shown"), [(2, 1), (8, 4), (20, 8)])
def test_a_video_is_a_strip_of_its_frames_with_their_groups(compressed, tmp_path, write_clip, frames, shown):
    sample = {"index": 0, "prompt": "what?", "video_path": write_clip("a.mp4", frames=frames, fps=4, size=48)}
    plain, grouped = (drawn(tmp_path, name, compressed, sample) for name in ("", "keep_one 0.25"))
    pixels = np.asarray(plain)[24, 24::51] if shown > 1 else None  # the middles of the first row
    rows, columns = -(-shown // 2), min(shown, 2)
    assert plain.size == (48 * columns + 3 * (columns - 1), 48 * rows + 3 * (rows - 1))
    if shown > 1:  # frame i of the clip is as bright as 20 + 10 i; the first and the last step are shown
        assert abs(int(pixels[0, 0]) - 20) < 6
        last = np.asarray(plain)[-24, 24 if shown % 2 else 75]
        assert abs(int(last[0]) - (20 + 10 * (frames - 2))) < 6
    assert grouped.width / grouped.height == pytest.approx(plain.width / plain.height, rel=0.1)
    assert np.asarray(grouped).std() > 10 + np.asarray(plain)[: 48 * rows // 2].std() / 4  # colours on grey frames
    colourful = np.ptp(np.asarray(grouped).astype(int), axis=2).max()
    assert colourful > 60 > np.ptp(np.asarray(plain).astype(int), axis=2).max()


def test_several_pictures_are_a_strip_and_each_has_its_own_groups(compressed, tmp_path):
    shades = [Image.new("RGB", (60, 60), (shade,) * 3) for shade in (40, 120, 200)]
    plain, grouped = (
        drawn(tmp_path, name, compressed, {"index": "x", "prompt": "?", "image": shades}) for name in ("", "a")
    )
    middles = [(30, 30), (30, 93), (93, 30)]
    assert [round(int(np.asarray(plain)[at][0]) / 40) for at in middles] == [1, 3, 5]
    assert grouped.width > plain.width / 2
    assert np.ptp(np.asarray(grouped).astype(int), axis=2).max() > 60


def test_at_most_eight_parts_evenly_with_the_first_and_the_last():
    assert [group_pictures._evenly(count) for count in (0, 1, 3)] == [[], [0], [0, 1, 2]]
    for count in (8, 9, 100):
        found = group_pictures._evenly(count)
        assert (len(set(found)), found[0], found[-1]) == (8, 0, count - 1)


def test_groups_are_drawn_with_a_prefill_alone_and_videos_that_cannot_be_read_are_left_out(compressed, tmp_path):
    asked = []

    class Noting(ModelAnswers):
        def answer(self, inputs):
            asked.append(self.max_new_tokens)
            return super().answer(inputs)

    noting = Noting(compressed.model, compressed.processor, 50)
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    picture = {"index": 1, "prompt": "?", "image": Image.new("RGB", (60, 60))}
    broken = {"index": 2, "prompt": "?", "video_path": str(tmp_path / "broken.mp4")}
    assert group_pictures.draw(tmp_path, "a", noting, [broken, picture]) == 1
    assert (asked, noting.max_new_tokens) == ([1], 50)
    assert not compressed.model.compression.keep_groups


def test_samples_that_differ_are_read_once(tmp_path):
    read = []

    class Mine:
        def __len__(self):
            return 50

        def __getitem__(self, number):
            read.append(number)
            return {"index": number, "prompt": "", "video_path": "a.mp4"}

    folders = [tmp_path / name for name in "ab"]
    for number, folder in enumerate(folders):
        write_run(folder, [float(number and n % 2) for n in range(50)])
    found = group_pictures.differing_samples(Mine(), folders, [], most=5)
    assert read == list(range(50))
    assert len(found) == 5
    assert all(sample["index"] % 2 for sample in found)
    assert max(b["index"] - a["index"] for a, b in itertools.pairwise(found)) <= 12


def test_strips_of_ten_thousand_videos_do_not_make_a_page_too_large(tmp_path):
    """The drawings are bounded by bytes, not by the number of samples."""
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (512, 256, 3), dtype=np.uint8))
    names, budget = ["dense", "a"], [page._PICTURES]
    rows = [(number, {"index": str(number)}) for number in range(40)]
    group_pictures.list_names(tmp_path, names)
    for name in ("", *names):
        for number, _ in rows:
            path = group_pictures._path(tmp_path, name, number)
            path.parent.mkdir(parents=True, exist_ok=True)
            noise.save(path, "JPEG", quality=85)
    page._add_pictures(rows, names, [{"folder": str(tmp_path / "run")}], budget)
    kept = [row for _, row in rows if "picture" in row]
    total = sum(len(row["picture"]) + sum(map(len, row.get("groups", {}).values())) for row in kept)
    assert 0 < len(kept) < 40
    assert total <= page._PICTURES


def test_a_picture_without_groups_is_drawn_for_the_dense_model_alone(tmp_path):
    answers = SimpleNamespace(model=SimpleNamespace(), config=CompressionConfig.preset("dense"))
    sample = {"index": 3, "prompt": "?", "image": Image.new("RGB", (2000, 1000), "red")}
    assert drawn(tmp_path, "", answers, sample).size == (512, 256)
    assert drawn(tmp_path, "dense", answers, sample) is None
