"""A bundle of a few cases and settings, recorded once."""

import shutil

import pytest
import torch
from bundles import only_few

from ppe_npu.parity import bundle


@pytest.fixture
def few(monkeypatch):
    only_few(monkeypatch)


@pytest.fixture(scope="session")
def once(tmp_path_factory):
    """The bundle's folder; tests must not change it."""
    with pytest.MonkeyPatch.context() as patch:
        only_few(patch)
        folder = tmp_path_factory.mktemp("once") / "recorded"
        assert all(row.ok for row in bundle.record(torch.device("cpu"), folder))
    return folder


@pytest.fixture
def recorded(few, once, tmp_path):
    """A copy of the bundle, to be damaged."""
    return shutil.copytree(once, tmp_path / "recorded")
