"""A randomly damaged adapter folder: loading fails with one line that names it, or the base answers with it."""

from __future__ import annotations

import json
import shutil

import pytest
from mutations import thousand
from saved_runs import lora_run  # noqa: F401  the fixture run
from test_fuzzed_checkpoints import check_many

from ppe_npu.checkpoints.loading import load_processor
from ppe_npu.errors import InputError


def test_a_processor_beside_an_adapter_is_compared_with_the_base(run, tiny_folder, tmp_path):
    folder = shutil.copytree(run[0], tmp_path / "adapter")
    file = folder / "processor_config.json"
    found = json.loads(file.read_text())
    found["image_processor"]["patch_size"] = 2
    file.write_text(json.dumps(found))
    with pytest.raises(
        InputError, match=r"image_processor of .*adapter cannot be used \(patch_size=2, but config.json"
    ):
        load_processor(folder, model=tiny_folder)


@thousand(2)
@pytest.mark.ci
def test_a_damaged_adapter_is_named_or_answers(run, tmp_path, numbers):
    check_many(run[0], tmp_path / "copy", numbers)
