"""The curve file: whole events stay readable after a kill, and writing recovers from a full disk or a lost file."""

from __future__ import annotations

import pytest
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

from ppe_npu.errors import FileError
from ppe_npu.training import curves
from ppe_npu.training.curves import CurveFile


def steps(folder):
    """The steps of all points that TensorBoard reads."""
    (file,) = folder.iterdir()
    return [event.step for event in EventFileLoader(str(file)).Load() if event.HasField("summary")]


def test_an_event_that_a_kill_cut_off_hides_no_other(tmp_path):
    curve = CurveFile(tmp_path)
    for step in (1, 2, 3):
        curve.add_scalar("loss", 0.5, step)
        curve.flush()
    (file,) = tmp_path.iterdir()
    whole = file.read_bytes()
    last = len(whole) // 5  # fewer bytes than the last of the 3 events has
    for cut in range(1, last):
        file.write_bytes(whole[:-cut])
        assert steps(tmp_path) == [1, 2]


@pytest.mark.parametrize("lost", ["file", "bytes"])
def test_a_file_that_somebody_took_away_begins_anew(tmp_path, lost):
    curve = CurveFile(tmp_path)
    for step in (1, 2):
        curve.add_scalar("loss", 0.5, step)
        curve.flush()
        if step == 1:
            (file,) = tmp_path.iterdir()
            file.unlink() if lost == "file" else file.write_bytes(b"")
    assert file.read_bytes()[:1] != b"\0"
    assert steps(tmp_path) == [2]


def test_what_a_full_disk_cut_off_is_written_again_whole(tmp_path, monkeypatch):
    def full(file, data):
        file.write(data[: len(data) // 2])
        raise OSError(28, "No space left on device")

    curve = CurveFile(tmp_path)
    curve.add_scalar("loss", 0.5, 1)
    with monkeypatch.context() as disk:
        disk.setattr(curves, "write_whole", full)
        with pytest.raises(FileError, match="no space is left on its disk"):
            curve.flush()
    curve.add_scalar("loss", 0.5, 2)
    curve.close()
    assert steps(tmp_path) == [1, 2]
