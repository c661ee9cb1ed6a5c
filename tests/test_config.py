"""Settings: presets, files, the released code's keys, and what is refused."""

import dataclasses
import json

import numpy as np
import pytest
import toys
from hypothesis import given, settings
from hypothesis import strategies as st
from prompts import CONTROLS

from ppe_npu import CompressionConfig
from ppe_npu.config import PRESETS
from ppe_npu.errors import InputError
from ppe_npu.methods.base import method_class

RELEASED = {
    "spatial_compression": True,
    "spatial_clustering_ratio": [0.45],
    "temporal_compression": False,
    "temporal_clustering_ratio": [0.0625],
    "compression_before_llm": True,
    "compression_cascade": False,
    "cascade_layer": [11, 23, 35],
    "use_ppe": True,
    "ppe_k": 8,
}


def test_presets():
    assert CompressionConfig.preset("dense").is_dense
    assert CompressionConfig.preset("chatunivi") == CompressionConfig(positions="renumber", k=1, order="score")
    assert CompressionConfig.preset("keep_one") == CompressionConfig(positions="keep_one", k=1)
    assert CompressionConfig.preset("ppe") == CompressionConfig(k=8, members="nearest", order="raster")
    assert CompressionConfig.preset("ppe", ratio=0.25, k=4).ratio == 0.25
    assert CompressionConfig.preset("ppe_plus") == CompressionConfig(positions="ppe", proportional_attention=True)
    assert CompressionConfig.preset("ppe_cascade").layers == (11, 23, 35)
    assert not CompressionConfig.preset("ppe_cascade").merges_before_llm


def test_released_keys():
    assert CompressionConfig.from_released(RELEASED) == CompressionConfig(
        ratio=0.45, k=8, members="last", order="score", ties="none"
    )
    plain = {key: RELEASED[key] for key in list(RELEASED)[:5]}
    assert CompressionConfig.from_released(plain) == CompressionConfig(
        positions="renumber", k=1, members="last", order="score", ties="none"
    )
    assert CompressionConfig.from_released({}).is_dense
    cascade = {**RELEASED, "compression_before_llm": False, "compression_cascade": True}
    assert CompressionConfig.from_released(cascade) == CompressionConfig(
        k=8, members="last", order="score", ties="none", layers=(11, 23, 35)
    )
    both = CompressionConfig.from_released({**RELEASED, "compression_cascade": True})
    assert both.merges_before_llm
    assert both.layers == (11, 23, 35)
    temporal = CompressionConfig.from_released({**RELEASED, "temporal_compression": True})
    assert (temporal.temporal_ratio, temporal.event_ratio) == (0.0625, 0.45)
    assert CompressionConfig.from_released({**RELEASED, "spatial_clustering_ratio": [0.45, 0.3]}).ratio == (0.45, 0.3)


def test_one_setting_has_one_form():
    """Lists and tuples, one ratio in a list, layers in any order, and a before_llm that states the default."""
    assert CompressionConfig(ratio=[0.5], before_llm=True) == CompressionConfig(ratio=0.5)
    assert CompressionConfig(layers=[7, 3], before_llm=False) == CompressionConfig(layers=(3, 7))
    assert CompressionConfig(layers=(), before_llm=None).merges_before_llm
    assert dataclasses.replace(CompressionConfig(before_llm=True), layers=(2,)).merges_before_llm is False


def test_numbers_of_other_libraries_are_numbers():
    config = CompressionConfig(ratio=np.float64(0.5), k=np.int64(2), layers=np.array([3, 1]))
    assert config == CompressionConfig(ratio=0.5, k=2, layers=(1, 3))
    assert json.loads(json.dumps(config.to_dict()))["layers"] == [1, 3]
    assert CompressionConfig(ratio=np.float32(0.5)).ratio == 0.5


def test_labels_tell_settings_apart():
    config = CompressionConfig(ratio=[0.45, 0.3], layers=[3], before_llm=True)
    assert CompressionConfig.preset("dense").label == "dense"
    assert CompressionConfig.preset("ppe").label == "dpc_knn-ppe-k8-nearest-raster-0.45"
    assert config.label == "dpc_knn-ppe-k8-nearest-raster-0.45+0.3-layersllm+3"
    assert CompressionConfig(temporal_ratio=0.5, event_ratio=0.4).label.endswith("-events0.5-of0.4")


def test_files_of_both_kinds_and_saving(tmp_path):
    config = CompressionConfig.preset("ppe", k=4, ratio=[0.5, 0.25], layers=[2], before_llm=True)
    config.save(tmp_path / "own.json")
    assert CompressionConfig.from_file(tmp_path / "own.json") == config
    (tmp_path / "released.json").write_text(json.dumps(RELEASED))
    assert CompressionConfig.from_file(tmp_path / "released.json").members == "last"
    (tmp_path / "dense.json").write_text("{}")
    assert CompressionConfig.from_file(tmp_path / "dense.json").is_dense
    assert sorted(p.name for p in tmp_path.iterdir()) == ["dense.json", "own.json", "released.json"]


@pytest.mark.parametrize("positions", ["keep_one", "renumber", "ppe"])
def test_k_is_one_where_positions_other_than_ppe_are_named_without_it(tmp_path, positions):
    values = {"ratio": 0.25, "positions": positions}
    (tmp_path / "own.json").write_text(json.dumps(values))
    k = 8 if positions == "ppe" else 1
    assert CompressionConfig.from_dict(values) == CompressionConfig(ratio=0.25, positions=positions, k=k)
    assert CompressionConfig.from_file(tmp_path / "own.json").k == k
    assert "k" not in values


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"method": "tome"}, "method='tome': choose one of none, avg_pool, dpc_knn"),
        ({"positions": "all"}, "positions='all': choose one of"),
        ({"members": "first"}, "members='first': choose one of"),
        ({"order": "time"}, "order='time': choose one of raster, score"),
        ({"ties": "last"}, "ties='last': choose one of first, none"),
        ({"before_llm": 0}, "before_llm=0: give true, false or null"),
        ({"ratio": 0}, "ratio=0: give the kept share of the tokens, in"),
        ({"ratio": 1.5}, "ratio=1.5"),
        ({"ratio": "half"}, "ratio='half'"),
        ({"ratio": True}, "ratio=True"),
        ({"k": 0}, "k=0: give a positive whole number"),
        ({"k": 2.0}, r"k=2\.0"),
        ({"positions": "keep_one", "k": 8}, "k=8 with positions='keep_one'"),
        ({"positions": "renumber", "k": 2}, "k=2 with positions='renumber'"),
        ({"method": "none", "ratio": 0.5}, r"dense \(method='none'\) keeps every token .*: leave ratio, .* out"),
        ({"kk": 8}, "unknown compression key.* kk: the keys are steps, positions"),
        ({"layers": 3}, "layers=3: give a list"),
        ({"layers": None}, "layers=None: give a list"),
        ({"layers": [3, 3]}, r"layers=\[3, 3\]: give a list of different decoder layers"),
        ({"layers": [-1]}, r"layers=\[-1\]: give a list"),
        ({"layers": [True]}, r"layers=\[True\]: give a list"),
        ({"before_llm": "yes"}, "before_llm='yes': give true, false or null"),
        ({"before_llm": False}, "before_llm=false without layers"),
        ({"temporal_ratio": 2}, r"temporal_ratio=2: give a share in \(0, 1\]"),
        ({"event_ratio": 0.5}, "event_ratio=0.5 needs a temporal_ratio"),
        ({"ratio": []}, r"ratio=\[\]: give the kept share"),
        ({"ratio": [0.45, 0]}, r"ratio=\[0.45, 0\]: give the kept share"),
        (
            {"ratio": [0.45, 0.3], "temporal_ratio": 0.5},
            r"ratio=\[0.45, 0.3\] with temporal_ratio=0.5.*one ratio; give one",
        ),
        ({"layers": [1], "temporal_ratio": 0.5}, r"temporal_ratio=0.5 with layers=\[1\].*set before_llm=true"),
        (
            {"layers": [1], "before_llm": True, "temporal_ratio": 0.5, "event_ratio": 0.5},
            r"event_ratio=0.5 with layers=\[1\]",
        ),
        ({"method": "none", "ratio": 1.0, "positions": "keep_one", "k": 1, "layers": [1]}, r"leave .*layers.* out"),
    ],
)
def test_what_does_not_fit_is_refused(values, message):
    with pytest.raises(ValueError, match=message):
        CompressionConfig.from_dict(values)


@pytest.mark.parametrize(
    ("ratio", "kept"), [([1.0, 0.5], "1.5"), ([0.8, 0.5], "1.2"), ([0.9, 0.05, 1, 1, 1], "1.08"), ([1, 1], "2")]
)
def test_lists_of_ratios_that_grow_a_prompt_are_refused(ratio, kept):
    for more in ({}, {"layers": [0, 1, 2], "before_llm": True}):
        with pytest.raises(InputError, match=rf"ratio=\[.*in all {kept} times the tokens; give ratios"):
            CompressionConfig(ratio=ratio, k=2, **more)
    with pytest.raises(InputError, match="times the tokens; give ratios that keep at most 1"):
        CompressionConfig.from_released({**RELEASED, "spatial_clustering_ratio": ratio})


@settings(derandomize=True, max_examples=300)
@given(
    ratios=st.lists(st.floats(0.01, 1), min_size=1, max_size=4),
    tokens=st.integers(4, 60),
    layers=st.lists(st.integers(0, 20), unique=True),
)
@pytest.mark.ci
def test_no_setting_keeps_more_than_came_in(ratios, tokens, layers):
    """However ratios round, and however often a cascade repeats them; a frame has at least as many tokens as ratios."""
    total, share = 0, 1
    for ratio in ratios:
        share *= ratio
        total += share
    if total > 1 + len(ratios) * 2**-52:
        with pytest.raises(InputError, match="times the tokens; give ratios that keep at most 1"):
            CompressionConfig(ratio=ratios)
        ratios = [ratio / 2 for ratio in ratios]  # at most 1/2 + 1/4 + ...
    config = CompressionConfig(ratio=ratios, layers=layers, before_llm=True, k=1)
    left = [tokens, *(config.span_tokens(1, tokens, layer) for layer in range(21))]
    assert left == sorted(left, reverse=True)
    assert min(config.methods[0].budgets(tokens)) >= 1


def test_halves_that_round_up_do_not_grow_a_frame():
    assert CompressionConfig(ratio=[0.5, 1.0]).methods[0].budgets(4) == (2, 2)
    assert CompressionConfig(ratio=[0.5, 1.0]).methods[0].budgets(5) == (3, 2)  # not 3 and 3
    assert CompressionConfig(ratio=[0.8, 0.25]).methods[0].budgets(10) == (
        8,
        2,
    )  # 0.8 + 0.2 is 1, whatever fp64 makes of it
    assert CompressionConfig(ratio=[0.6, 0.3]).methods[0].budgets(1) == (1, 1)  # each ratio keeps one


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({**RELEASED, "compression_cascade": True, "cascade_layer": []}, "needs cascade_layer"),
        ({**RELEASED, "use_ppe": "false"}, "use_ppe='false' must be true or false or null, not a string"),
        ({**RELEASED, "ppe_k": 2.5}, "ppe_k=2.5: give a positive whole number"),
        ({**RELEASED, "spatial_clustering_ratio": [1.5]}, r"spatial_clustering_ratio=\[1.5\]: give the kept share"),
        ({**RELEASED, 1: 2}, "unknown released key.* 1: the keys are"),
        ({**RELEASED, "compression_cascade": True, "temporal_compression": True}, "event_ratio=0.45 with layers="),
        ({**RELEASED, "temporal_compression": True, "temporal_clustering_ratio": [0.5, 0.5]}, "give a list of one"),
        ({"temporal_compression": True}, "needs spatial_compression=true"),
        ({"spatial_compression": True}, "set compression_before_llm=true or compression_cascade=true"),
        ({"ppe_kk": 8}, "unknown released key"),
    ],
)
def test_released_settings_that_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        CompressionConfig.from_released(values)


def test_unknown_preset_and_unreadable_files(tmp_path):
    with pytest.raises(ValueError, match="preset 'best' is unknown: choose one of dense, chatunivi, keep_one, ppe"):
        CompressionConfig.preset("best")
    with pytest.raises(ValueError, match=r"nowhere\.json: cannot be read as JSON"):
        CompressionConfig.from_file(tmp_path / "nowhere.json")
    (tmp_path / "list.json").write_text("[1]")
    with pytest.raises(ValueError, match="needs a JSON object, has a list"):
        CompressionConfig.from_file(tmp_path / "list.json")
    for path, kind in ((None, "NoneType"), (0, "int"), (b"c.json", "bytes"), (["c.json"], "list")):
        with pytest.raises(ValueError, match=rf"cannot be read as JSON \(it is of type {kind}, not a path\)"):
            CompressionConfig.from_file(path)


@pytest.mark.parametrize("method", CONTROLS)
def test_controls_are_presets_with_their_own_limits(method):
    config = CompressionConfig.preset(method)
    assert (config.method, config.positions, config.k, config.order) == (method, "keep_one", 1, "raster")
    assert CompressionConfig.preset(method, positions="ppe", k=8, layers=[2]).k == 8
    assert CompressionConfig.from_dict(config.to_dict()) == config
    with pytest.raises(ValueError, match=f"method='{method}' with order='score'"):
        CompressionConfig.preset(method, order="score")
    with pytest.raises(ValueError, match="ties='none'"):
        CompressionConfig.preset(method, ties="none")


def test_a_methods_preset_has_the_methods_own_ratio(monkeypatch):
    """A new method's is not the shorthand's 0.45."""
    monkeypatch.setattr("ppe_npu.config.PRESETS", (*PRESETS, toys.Corner.name))
    for name in (toys.Corner.name, "random", "divprune"):
        config = CompressionConfig.preset(name)
        assert config.methods[0].ratio == method_class(name).__dataclass_fields__["ratio"].default
        assert CompressionConfig.from_text(name, ratio=0.3).methods[0].ratio == 0.3
        assert config.tokens_kept((1, 20, 20)) == CompressionConfig(steps=[{"method": name}]).tokens_kept((1, 20, 20))


@pytest.mark.parametrize("steps", [["dpc_knn"], "dpc_knn", [3], {"method": "dpc_knn"}])
def test_steps_that_are_no_methods_are_refused_with_what_one_is(steps):
    with pytest.raises(ValueError, match=r'give a list of methods, or of \{"method": NAME, ...\}'):
        CompressionConfig(steps=steps)


def test_a_seed_belongs_to_random_alone():
    assert CompressionConfig.preset("random", seed=np.int64(3)).label.endswith("-seed3")
    assert CompressionConfig.preset("random").label != CompressionConfig.preset("random", seed=1).label
    for seed in (-1, 1.5, True, 2**63):
        with pytest.raises(ValueError, match="seed="):
            CompressionConfig.preset("random", seed=seed)
    with pytest.raises(ValueError, match="only method='random' has a seed"):
        CompressionConfig.preset("uniform", seed=1)


# -- in one text, and changed ------------------------------------------------------------------------------------------


def test_a_method_and_its_fields_in_one_text():
    text = 'globalcom2:ratio=0.5,by={"method": "divprune", "dropped": "drop"},temperature=2,positions=ppe,k=4'
    config = CompressionConfig.from_text(text)
    (method,) = config.methods
    assert (method.ratio, method.temperature, method.by.dropped) == (0.5, 2, "drop")
    assert (config.positions, config.k) == ("ppe", 4)
    assert CompressionConfig.from_text("divprune") == CompressionConfig.preset("divprune")
    assert CompressionConfig.from_text("ppe:k=4,layers=[1,2]") == CompressionConfig.preset("ppe", k=4, layers=[1, 2])
    assert CompressionConfig.from_text("divprune:ratio=0.5", ratio=0.25).methods[0].ratio == 0.25


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("divprune:ratio", "write it as NAME:key=value"),
        ("divprune:ratio=0.5,ratio=0.2", "each key once"),
        ("divprune:=0.5", "write it as NAME"),
        ("divprune:rate=0.5", "divprune has no rate"),
        ("divprune:ratio=half", "give the kept share"),
        ("best:ratio=0.5", "preset 'best' is unknown"),
    ],
)
def test_what_no_text_can_say(text, message):
    with pytest.raises(InputError, match=message):
        CompressionConfig.from_text(text)


def test_single_keys_are_changed_wherever_they_belong():
    one = CompressionConfig.preset("divprune")
    assert one.changed(ratio=0.3, positions="ppe") == CompressionConfig.preset("divprune", ratio=0.3, positions="ppe")
    assert one.changed(dropped="drop").methods[0].dropped == "drop"
    assert one.changed(ratio=None, k=None) is one
    two = CompressionConfig.from_dict({"steps": [{"method": "divprune"}, {"method": "random", "layer": 1, "seed": 2}]})
    assert two.changed(dropped="drop", seed=3).methods[1].seed == 3
    with pytest.raises(InputError, match="several steps have it"):
        two.changed(ratio=0.5)
    with pytest.raises(InputError, match="no step has it; give one of dropped, seed, layer"):
        two.changed(neighbors=3)
    assert CompressionConfig.preset("ppe").changed(ratio=0.3) == CompressionConfig.preset("ppe", ratio=0.3)
    assert CompressionConfig.preset("ppe").changed(positions="keep_one") == CompressionConfig.preset("keep_one")
