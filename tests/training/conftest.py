"""Fixtures of the training tests: a small run, and a copy of it that was cut off."""

import pytest
from cut_runs import cut_run, whole_run  # noqa: F401

from ppe_npu.files import write_bytes
from ppe_npu.training import summary


@pytest.fixture(autouse=True)
def undrawn(request, monkeypatch):
    """Skips drawing the losses, a tenth of a small run's time, unless a test requests `drawn`."""
    if "drawn" not in request.fixturenames:
        monkeypatch.setattr(summary, "plot_losses", lambda losses, path: write_bytes(path, b"losses"))


@pytest.fixture
def drawn():
    """Lets a run draw the picture of its losses."""
