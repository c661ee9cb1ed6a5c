"""From pixels to the first token: a short tower's counts give a deep one's, and the text agrees with the numbers."""

import json

import bench_first_token as first_token
import pytest
import torch
from bench.models import SIZES, build

from ppe_npu import CompressionConfig, compress
from ppe_npu.errors import InputError
from ppe_npu.files import write_json
from ppe_npu.inspect.flops import flop_counter
from ppe_npu.methods import IPCV

DEPTH = sum(times for times, _ in first_token.BLOCKS)


def row(tokens, share, least, most, rounds=3):
    shares = {"share": share, "least_share": least, "most_share": most, "flops_share": 1.02 * share}
    return {"tokens": tokens, "rounds": rounds, **shares}


def flops(model, inputs) -> int:
    with torch.no_grad(), flop_counter() as counter:
        model(**inputs, logits_to_keep=1)
    return counter.get_total_flops()


@pytest.mark.ci
def test_a_block_of_each_kind_stands_for_all_of_the_tower():
    text, vision, tied = SIZES["tiny"]
    SIZES["whole"] = text, vision | {"depth": DEPTH, "fullatt_block_indexes": [7, 15, 23, 31]}, tied
    whole = build("whole", torch.device("cpu"), torch.float32)
    short = first_token.model_of("tiny", 2, torch.device("cpu"), torch.float32)
    inputs, patches, window = first_token.page(short, 256), 256, 64
    told, expected = {}, {}
    for name, method, here in (("dense", None, None), ("ipcv", IPCV(), first_token.IPCV_HERE)):
        if method is not None:
            compress(whole, CompressionConfig(steps=[method]))
            compress(short, CompressionConfig(steps=[here]))
        with torch.no_grad():
            told[name] = first_token.counted(short, inputs, text["num_hidden_layers"])["deep"]
        expected[name] = flops(whole, inputs)
    assert told["dense"] == expected["dense"]
    # Which patches stay decides how many attend to each other in windows, and nothing else.
    windows = 4 * vision["hidden_size"] * patches * window * DEPTH
    assert abs(told["ipcv"] - expected["ipcv"]) < windows
    assert told["ipcv"] < 0.9 * told["dense"]


@pytest.mark.slow
def test_the_table_is_written_and_all_but_two_have_one_number_of_tokens(tmp_path, capsys):
    output = tmp_path / "first.json"
    run = ["--sizes", "tiny", "--patches", "256", "--output", str(output)]
    first_token.main([*run, "--rounds", "1"])
    whole = json.loads(output.read_text())
    first = whole["sizes"]["tiny"]["found"]
    write_json(output, {**whole, "sizes": {"tiny": {"found": {"dense": first["dense"]}}}})  # as a killed run leaves it
    first_token.main([*run, "--rounds", "2"])
    result = json.loads(output.read_text())["sizes"]["tiny"]
    rows = result["rows"]
    for name, own in result["found"].items():
        assert (own["passes"][:1] == first[name]["passes"]) == (name == "dense")
        assert len(own["passes"]) == 2
        assert own["flops"] == first[name]["flops"]
        assert rows[name]["least_share"] <= rows[name]["share"] <= rows[name]["most_share"]
    with pytest.raises(InputError, match="name another file"):
        first_token.main([*run, "--layers", "1"])
    assert {name for name, own in rows.items() if own["tokens"] == 64} == {"dense", "ipcv"}
    assert {own["tokens"] for name, own in rows.items() if name not in ("dense", "ipcv")} == {29}
    for own in rows.values():
        assert 0 < own["built_s"] < own["deep_s"]
    less = [rows[name]["tflops"] for name in ("dense", "ppe", "pixelprune", "pixelprune + ipcv")]
    assert less == sorted(less, reverse=True)
    assert result["verdict"] in capsys.readouterr().out


def test_what_is_fastest_is_said_only_of_those_with_as_many_tokens_and_only_where_rounds_are_apart():
    rows = {"dense": row(64, 1.0, 1.0, 1.0), "ipcv": row(64, 0.1, 0.1, 0.1), "ppe": row(29, 0.5, 0.48, 0.52)}
    told = first_token.verdict(rows | {"pixelprune": row(29, 0.4, 0.39, 0.41)})
    assert "at 29 visual tokens pixelprune has the fewest FLOPs, 40.8% of dense's" in told
    assert "pixelprune took the least time, 40.0% of dense's, then ppe, 50.0%" in told
    assert "overlap" not in told
    assert told.endswith("is met in time and met in FLOPs.")
    told = first_token.verdict(rows | {"pixelprune": row(29, 0.445, 0.39, 0.49)})
    assert "which is faster is not said" in told
    assert told.endswith("is met in time and missed in FLOPs.")
    assert "is not said" in first_token.verdict(rows | {"pixelprune": row(29, 0.4, 0.4, 0.4, rounds=1)})


@pytest.mark.parametrize("given", [["--patches", "250"], ["--patches", "225"], ["--rounds", "0"]])
def test_what_cannot_be_measured_is_refused(given):
    with pytest.raises(InputError, match="give"):
        first_token.main(["--sizes", "tiny", *given])
