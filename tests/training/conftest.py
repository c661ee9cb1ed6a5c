"""Shared by the tests of training: a small run, and a copy of it that was cut off."""

from cut_runs import cut_run, whole_run  # noqa: F401
