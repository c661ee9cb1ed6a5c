"""An adapter's folder in which anything was changed: one line that names it, or the base with it answers."""

from __future__ import annotations

from mutations import thousand
from saved_runs import lora_run  # noqa: F401  the fixture run
from test_fuzzed_checkpoints import check_many


@thousand(2)
def test_a_damaged_adapter_is_named_or_answers(run, tmp_path, numbers):
    check_many(run[0], tmp_path / "copy", numbers)
