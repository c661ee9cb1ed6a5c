"""Progress of work: a bar in a terminal, whole lines elsewhere."""

import io

import pytest

from ppe_npu.utils import progress
from ppe_npu.utils.progress import Progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def clock(monkeypatch):
    """clock(seconds) lets so much time pass."""
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])

    def passes(seconds):
        now[0] += seconds

    return passes


def test_without_a_terminal_there_are_lines_and_not_many(clock):
    out = io.StringIO()
    with Progress(300, "tokens", "record", stream=out) as bar:
        for _ in range(300):
            clock(0.25)
            bar.update()
    lines = out.getvalue().splitlines()
    told = [(120, 30), (240, 60), (300, 75)]
    assert lines == [f"tokens: {done} of 300 records, {seconds} s" for done, seconds in told]
    assert "\r" not in out.getvalue()


def test_short_work_says_nothing(clock):
    out = io.StringIO()
    with Progress(3, "files", "file", stream=out) as bar:
        bar.update(3)
        clock(1)
    assert out.getvalue() == ""


@pytest.mark.parametrize("how", [{"hidden": True}, {"quiet": True}])
def test_hidden_and_quiet_work_says_nothing(clock, how):
    out = io.StringIO()
    with Progress(3, "files", "file", stream=out, **how) as bar:
        clock(100)
        bar.update(3)
    assert out.getvalue() == ""


def test_in_a_terminal_there_is_a_bar():
    out = Terminal()
    with Progress(3, "files", "file", done=1, stream=out) as bar:
        bar.update(2)
        bar.note(loss=0.5)
        bar.write("a line")
    assert "files: 100%" in out.getvalue()
    assert "3/3" in out.getvalue()
    assert "loss=0.5" in out.getvalue()
    assert "a line\n" in out.getvalue()
    hidden = Terminal()
    with Progress(3, "files", "file", stream=hidden, hidden=True) as bar:
        bar.update()
    assert hidden.getvalue() == ""
