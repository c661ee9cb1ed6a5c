"""Settings: presets, files, the released code's keys, and what is refused."""

import json

import pytest

from ppe_npu import CompressionConfig

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


def test_released_keys():
    assert CompressionConfig.from_released(RELEASED) == CompressionConfig(
        ratio=0.45, k=8, members="last", order="score"
    )
    plain = {key: RELEASED[key] for key in list(RELEASED)[:5]}
    assert CompressionConfig.from_released(plain) == CompressionConfig(
        positions="renumber", k=1, members="last", order="score"
    )
    assert CompressionConfig.from_released({}).is_dense


def test_files_of_both_kinds_and_saving(tmp_path):
    config = CompressionConfig.preset("ppe", k=4)
    config.save(tmp_path / "own.json")
    assert CompressionConfig.from_file(tmp_path / "own.json") == config
    (tmp_path / "released.json").write_text(json.dumps(RELEASED))
    assert CompressionConfig.from_file(tmp_path / "released.json").members == "last"
    (tmp_path / "dense.json").write_text("{}")
    assert CompressionConfig.from_file(tmp_path / "dense.json").is_dense
    assert sorted(p.name for p in tmp_path.iterdir()) == ["dense.json", "own.json", "released.json"]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"method": "tome"}, "method='tome': choose one of none, dpc_knn"),
        ({"positions": "all"}, "positions='all': choose one of"),
        ({"members": "first"}, "members='first': choose one of"),
        ({"order": "time"}, "order='time': choose one of raster, score"),
        ({"ratio": 0}, "ratio=0: give the kept share of the tokens, in"),
        ({"ratio": 1.5}, "ratio=1.5"),
        ({"ratio": "half"}, "ratio='half'"),
        ({"ratio": True}, "ratio=True"),
        ({"k": 0}, "k=0: give a positive whole number"),
        ({"k": 2.0}, r"k=2\.0"),
        ({"positions": "keep_one", "k": 8}, "k=8 with positions='keep_one'"),
        ({"method": "none", "ratio": 0.5}, r"method='none' \(dense\) needs ratio=1.0"),
        ({"kk": 8}, "unknown compression key.* kk: the keys are method, ratio"),
        ({"layers": 3}, "layers=3: give a list"),
        ({"layers": None}, "layers=None: give a list"),
        ({"layers": [3, 7]}, "layers=.*is not part of this version"),
        ({"temporal_ratio": 0.5}, "temporal_ratio=0.5: temporal compression is not part of this version"),
        ({"ratio": [0.45, 0.3]}, r"ratio=\[0.45, 0.3\]: a list of several stages is not part of this version"),
    ],
)
def test_what_does_not_fit_is_refused(values, message):
    with pytest.raises(ValueError, match=message):
        CompressionConfig.from_dict(values)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({**RELEASED, "compression_cascade": True}, "compression_cascade=true.*not part of this version"),
        ({**RELEASED, "temporal_compression": True}, "temporal_compression=true.*not part of this version"),
        ({**RELEASED, "spatial_clustering_ratio": [0.45, 0.3]}, "several stages"),
        ({"spatial_compression": True}, "needs compression_before_llm=true"),
        ({"ppe_kk": 8}, "unknown released key"),
    ],
)
def test_released_settings_that_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        CompressionConfig.from_released(values)


def test_unknown_preset_and_unreadable_files(tmp_path):
    with pytest.raises(ValueError, match="preset 'best' is unknown: choose one of dense, chatunivi, keep_one, ppe"):
        CompressionConfig.preset("best")
    with pytest.raises(ValueError, match="a cascade"):
        CompressionConfig.preset("ppe_cascade")
    with pytest.raises(ValueError, match=r"nowhere\.json: cannot be read as JSON"):
        CompressionConfig.from_file(tmp_path / "nowhere.json")
    (tmp_path / "list.json").write_text("[1]")
    with pytest.raises(ValueError, match="needs a JSON object, has a list"):
        CompressionConfig.from_file(tmp_path / "list.json")
