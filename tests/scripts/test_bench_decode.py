"""A compressed model's step of decoding, compared with an untouched model's with an equally long cache."""

import json
import os
import subprocess
import sys
from importlib.metadata import version

import bench_decode
import pytest

TRANSFORMERS = tuple(int(part) for part in version("transformers").split(".")[:2])


pytestmark = pytest.mark.slow
MEASURE = """
import bench_decode, sys
from bench.models import PROMPTS, SIZES, Prompt

PROMPTS[bench_decode.CASE] = Prompt((2, 4, 4), text=9)
SIZES["tiny"] = SIZES["tiny"][0] | {"num_hidden_layers": int(sys.argv[1])}, *SIZES["tiny"][1:]
bench_decode.main(["--sizes", "tiny", "--steps", "8", "--output", sys.argv[2]])
"""


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """Results for a model of 3 layers and one of 5, each in a process of its own, because earlier runs add calls."""
    output, found = tmp_path_factory.mktemp("decode"), []
    environ = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    for layers in (3, 5):
        path = output / f"{layers}.json"
        command = [sys.executable, "-c", MEASURE, str(layers), str(path)]
        subprocess.run(command, check=True, capture_output=True, env=environ, timeout=300)
        found.append(json.loads(path.read_text())["sizes"]["tiny"])
    return found


@pytest.fixture
def rows(measured):
    return measured[0]


def test_all_take_turns_and_are_timed(rows):
    names = ("UNTOUCHED", "PPE", "PLUS", "STAGED", "FUSED")
    assert list(rows) == [getattr(bench_decode, name) for name in names]
    assert rows[bench_decode.UNTOUCHED]["share"] == 0.0
    for row in rows.values():
        assert 0 < row["fastest_ms"] <= row["ms"] <= row["slowest_ms"]


@pytest.mark.skipif(TRANSFORMERS < (5, 22), reason="an older transformers' own step is made of something else")
def test_a_compressed_step_runs_no_more_operators_than_an_untouched_one(rows):
    for name in (bench_decode.PPE, bench_decode.STAGED):
        assert rows[name]["operators"] <= rows[bench_decode.UNTOUCHED]["operators"]


def test_what_functions_a_step_has_more_it_has_once_and_not_in_every_layer(measured):
    few, many = ({name: row["calls"] for name, row in rows.items()} for rows in measured)
    untouched = many[bench_decode.UNTOUCHED] - few[bench_decode.UNTOUCHED]
    assert untouched > 0
    assert many[bench_decode.PPE] - few[bench_decode.PPE] == untouched
