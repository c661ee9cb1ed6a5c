"""Any mapping of junk is a config that goes through JSON unchanged, or one line that names a key; nothing else."""

from __future__ import annotations

import json
import os
import random
from types import SimpleNamespace

import mutations
import pytest
import yaml
from bounds import bounded
from command_line import refused
from hypothesis import given, settings
from hypothesis import strategies as st

from ppe_npu import CompressionConfig
from ppe_npu.config import PRESETS
from ppe_npu.data.sampling import VideoSampling
from ppe_npu.errors import InputError
from ppe_npu.evaluation.results import method, title
from ppe_npu.methods.base import method_class, published
from ppe_npu.models.pvc.config import PVCConfig
from ppe_npu.released import KEYS, Released
from ppe_npu.settings import from_mapping, strangers, to_plain
from ppe_npu.training.adapters import Adapter
from ppe_npu.training.args import TrainConfig
from ppe_npu.training.recipes import load_recipe

TIMES = 10  # mappings in one draw of hypothesis, which share one time limit
MUTATIONS = settings(max_examples=15, derandomize=True, deadline=None)
MANY = settings(MUTATIONS, max_examples=2000, derandomize=False)
DICE = st.integers(0, 2**40).map(random.Random)  # hypothesis' own draws of mappings take ten times as long
DEEP: list = []
for _ in range(3000):
    DEEP = [DEEP]
PLAIN = [
    *(None, True, False, 0, 1, 2, 4, 8, -1, 0.5, 1.0, 2.5, -0.0, 1e-300, 1e308, float("inf"), float("nan"), 10**30),
    *("", "false", "no", "1e-5", "2", "ppe", "dpc_knn", "lora", "a\0", "\ud800", "../x", "x.json", "x" * 5000),
    *("cosine", [], [[]], [1], [0.5, 0.25], [1.0, 0.5], [True], ["language"], [None], ["a", 1], [0.5] * 300, [2, 1]),
    [10**400],
    *({}, {1: 2}, {"a": 1}, {"fps": "2"}, {"nframes": 2.5}, {"k": 2}, {"rank": 8}, {None: None}, {"fps": []}),
]  # fmt: skip
JUNK = [*PLAIN, b"x", (1, 2), {1, 2}, object(), DEEP, 1j, range(3), 0.25, 3, 16]
METHODS = published()  # without the toys that other tests register
STRANGE = ["", "kk", "a b", 1, 1.5, None, True, b"k", (1,), "k" * 300]
FRAME = {"model": "m", "data": "d.json", "output": "o"}
CLASSES = {
    "compression": (CompressionConfig, {}, CompressionConfig.from_dict),
    "released": (Released, dict.fromkeys(KEYS[:1], True) | {"compression_before_llm": True}, Released.from_dict),
    "adapter": (Adapter, {}, Adapter.from_dict),
    "video": (VideoSampling, {}, lambda values: from_mapping(VideoSampling, values, "video")),
    "pvc": (PVCConfig, {}, lambda values: from_mapping(PVCConfig, values, "pvc")),
    "training": (TrainConfig, FRAME, lambda values: from_mapping(TrainConfig, values, "recipe")),
}


PLAINS = {name: to_plain(make(frame)) for name, (_, frame, make) in CLASSES.items()}


def mapping(name, dice):
    """A few of a class's keys with junk as values, sometimes with a key that the class does not have."""
    cls, frame, _ = CLASSES[name]
    keys = dice.sample(list(cls.__dataclass_fields__), dice.choice([1, 1, 2, 3]))
    strange = [dice.choice(STRANGE)] if dice.random() < 0.1 else []
    return frame | {key: junk_or(PLAINS[name].get(key), dice) for key in [*keys, *strange]}


def junk_or(right, dice):
    return dice.choice(JUNK) if dice.random() < 0.7 else right


def check(name, values):
    """Checks the law for one mapping; returns whether it was accepted."""
    cls, _, make = CLASSES[name]
    try:
        made = make(values)
    except InputError as error:
        said = str(error)
    else:
        assert make(json.loads(json.dumps(to_plain(made), allow_nan=False))) == made
        return True
    assert "\n" not in said
    assert len(said) < 2000
    named = [str(key) for key in values if key in cls.__dataclass_fields__]
    assert any(key in said for key in named) or strangers(values, cls.__dataclass_fields__) in said, said
    return False


def check_many(name, runs):
    taken = {True: 0, False: 0}

    @runs
    @given(DICE)
    def go(dice):
        with bounded(name):
            for _ in range(TIMES):
                taken[check(name, mapping(name, dice))] += 1

    go()
    assert min(taken.values()) > sum(taken.values()) // 20, taken  # the law is tried on both sides


@pytest.mark.parametrize("name", list(CLASSES))
def test_junk_is_a_config_or_one_line(name):
    check_many(name, MUTATIONS)


@pytest.mark.slow
@pytest.mark.parametrize("name", list(CLASSES))
def test_other_junk_is_a_config_or_one_line(name):
    check_many(name, MANY)


@MUTATIONS
@given(DICE)
def test_presets_of_junk(dice):
    name = dice.choice([*PRESETS, *JUNK, *STRANGE])
    overrides = {dice.choice(["ratio", "k", "kk", "layers"]): dice.choice(JUNK)}
    try:
        said = CompressionConfig.preset(name, **overrides).label
    except InputError as error:
        said = str(error)
    assert said
    assert "\n" not in said


def check_method(dice) -> bool:
    """One field of one method with junk: refused in a line, or a config that can be named, counted and saved."""
    cls = method_class(dice.choice(METHODS))
    field = dice.choice(list(cls.__dataclass_fields__))
    try:
        config = CompressionConfig(steps=[{"method": cls.name, field: dice.choice(JUNK)}])
    except InputError as error:
        said = str(error)
    else:
        said = None
    if said is not None:
        assert "\n" not in said
        assert len(said) < 2000
        assert field in said
        return False
    plain = json.loads(json.dumps(config.to_dict(), allow_nan=False))
    assert CompressionConfig.from_dict(plain) == config
    assert title(plain)
    assert method(plain)
    assert config.label.isprintable()
    assert "/" not in config.label
    assert 1 <= config.span_tokens(1, 64) <= 64
    assert 1 <= config.span_tokens(4, 64, video=True) <= 256
    return True


def check_methods(dice) -> None:
    with bounded("method"):
        for _ in range(TIMES):
            check_method(dice)


@MUTATIONS
@given(DICE)
def test_junk_in_a_methods_field(dice):
    check_methods(dice)


@pytest.mark.slow
@MANY
@given(DICE)
def test_other_junk_in_a_methods_field(dice):
    check_methods(dice)


@pytest.mark.parametrize("text", ['{"method": "flashvid", "expansion": 1e308}', '{"method": "pact", "ratio": null}'])
def test_extremes_that_a_method_takes(text):
    """A share that gives infinitely many tokens, and a number of tokens that the features decide."""
    config = CompressionConfig(steps=[json.loads(text)])
    assert config.span_tokens(2, 16) == 32
    assert config.label
    assert title(config.to_dict())


@pytest.mark.parametrize("name", [[], {}, None, 5, True, ["random"]], ids=str)
def test_a_methods_name_of_junk(name):
    with pytest.raises(InputError, match=r"method=.*: choose one of"):
        CompressionConfig(steps=[{"method": name}])


@pytest.mark.parametrize("name", ["ipcv", "pixelprune", "holitom", "cdpruner", "tome", "fastv", "pact", "pyramiddrop"])
def test_events_by_a_method_that_cannot_group_means_of_frames(name):
    with pytest.raises(InputError, match=f"events by={name}: .*give a method that looks only at tokens"):
        CompressionConfig(steps=[{"method": "events", "by": {"method": name}}])


def test_events_have_the_layer_and_not_what_they_group_by():
    with pytest.raises(InputError, match="events by=divprune with layer=1: give the layer to events itself"):
        CompressionConfig(steps=[{"method": "events", "by": {"method": "divprune", "layer": 1}}])
    (step,) = CompressionConfig(steps=[{"method": "events", "by": {"method": "divprune"}, "layer": 1}]).steps
    assert step.layer == 1


def test_a_long_list_of_steps_has_a_name_that_a_folder_can_have(tmp_path):
    names = []
    for last in (0.5, 0.25):
        steps = [{"method": "random", "ratio": 0.9, "seed": seed} for seed in range(60)]
        names.append(CompressionConfig(steps=[*steps, {"method": "random", "ratio": last}]).label)
        (tmp_path / names[-1]).mkdir()
    assert names[0] != names[1]


def test_a_value_nested_too_deeply_on_the_command_line_stays_a_text():
    with pytest.raises(InputError, match=r"ratio='\[\["):
        CompressionConfig.from_text("ppe:ratio=" + "[" * 50_000)


# -- files -------------------------------------------------------------------------------------------------------------

BOMB = "\n".join(["a0: &a0 [x, x]", *(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 20))])
MERGES = "\n".join(
    ["a0: &a0 {k: 1}", *(f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 9)}]}}" for n in range(1, 12))]
)
FILES = {
    "empty": ("", "is empty"),
    "comment": ("# nothing\n", "is empty"),
    "deep": ("[" * 3000, "nested too deeply"),
    "deep map": ("a: " + "{a: " * 2000, "nested too deeply"),
    "bomb": (BOMB, "expand to more than 100,000 values"),
    "merges": (MERGES, "expand to more than 100,000 values"),
    "loop": ("a: &a [*a]", "an alias contains itself"),
    "twice": ("seed: 1\noverwrite: false\nseed: 2\n", "the key 'seed' is given twice"),
    "no index": ('seed: !!int ""', "cannot be read as YAML"),
    "no date": ("seed: !!timestamp x", "cannot be read as YAML"),
    "object": ("seed: !!python/object/apply:os.system [x]", "cannot be read as YAML"),
    "two": ("a: 1\n---\nb: 2\n", "cannot be read as YAML"),
    "latin": ("output: grün".encode("latin-1"), "byte 10 is not UTF-8"),
    "utf16": ("output: o".encode("utf-16"), "is not UTF-8"),
    "binary": (bytes(range(256)), "is not UTF-8"),
    "control": ("output: \x07", "cannot be read as YAML"),
    "digits": ("seed: " + "9" * 5000, "cannot be read as YAML"),
    "list": ("- 1", "contains a list"),
    "text": ("ppe", "contains a str"),
    "keys": ("1: 2\nnull: 3\n", "has no setting 1, None"),
    "large": (b"# " + b"x" * 2_000_000, "bytes, more than the limit of"),
    "quoted": ('overwrite: "false"', "overwrite='false' must be true or false, not a string: write it without quotes"),
    "half": ("save_steps: 0.5", "save_steps=0.5 must be a whole number"),
    "endless": ("epochs: .inf", "epochs=inf must be"),
    "none": ("learning_rate: .nan", "learning_rate=nan must be finite"),
    "dotless": ("learning_rate: 1e-5", "write 1.0e-5"),
    "number": ("output: 5", "output=5 must be a string"),
    "nested": ("video: {fps: '2'}", "fps='2' must be a number"),
    "compression": ("compression: {1: 2}", "unknown compression key(s) 1: the keys are"),
    "adapter": ("adapter: []", "adapter=[] must be a string or a mapping"),
    "device": ("device: [1]", "device=[1] must be a string"),
    "seeds": ("seed: 99999999999999999999", "seed=99999999999999999999 must be in [0,"),
    "growing": (
        "compression: {ratio: [1.0, 0.5], layers: [0, 1]}",
        "times the tokens; give ratios that keep at most 1",
    ),
}


@pytest.fixture
def untrained(monkeypatch):
    """The configs that train() was given; nothing is loaded."""
    given: list = []
    result = SimpleNamespace(steps=0, seconds=0.0, final="nowhere", skipped=0)
    monkeypatch.setattr("ppe_npu.training.trainer.train", lambda config, **_: given.append(config) or result)
    return given


@pytest.mark.parametrize("name", list(FILES))
def test_recipes_that_cannot_be_are_one_line_before_anything_is_loaded(run, untrained, tmp_path, name):
    content, words = FILES[name]
    file = tmp_path / "recipe.yaml"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    asked = ["--model", "m", "--data", "d.json", "--output", tmp_path / "o", "--device", "cpu"]
    refused(run("train", "--config", file, *asked), words, "recipe.yaml")
    assert not untrained
    assert [path.name for path in tmp_path.iterdir()] == ["recipe.yaml"]


def test_what_is_no_recipe_file_is_one_line(run, untrained, tmp_path):
    (tmp_path / "folder.yaml").mkdir()
    os.mkfifo(tmp_path / "pipe.yaml")
    kinds = {"folder": "folder", "pipe": "not a regular file"}
    for name, words in {**kinds, "gone": "neither a file nor"}.items():
        file = tmp_path / f"{name}.yaml"
        refused(run("train", "--config", file, "--model", "m", "--data", "d.json"), file.name, words)
    refused(run("train", "--config", "/dev/zero", "--model", "m", "--data", "d.json"), "/dev/zero", kinds["pipe"])
    refused(run("train", "--config", "x" * 300, "--model", "m", "--data", "d.json"), "too long")
    for name, words in {**kinds, "gone": "does not exist"}.items():
        if (tmp_path / f"{name}.yaml").exists():
            (tmp_path / f"{name}.yaml").rename(tmp_path / f"{name}.json")
        with pytest.raises(InputError, match=rf"{name}\.json: cannot be read as JSON \(.*{words}"):
            CompressionConfig.from_file(tmp_path / f"{name}.json")
    for text, words in (
        ("[" * 9000, "deeply"),
        ('{"k": 2, "k": 4}', "'k' is given twice"),
        ("", "empty"),
        ("{", "line"),
    ):
        (tmp_path / "c.json").write_text(text)
        with pytest.raises(InputError, match=rf"c\.json: cannot be read as JSON \(.*{words}"):
            CompressionConfig.from_file(tmp_path / "c.json")
    (tmp_path / "c.json").write_text('{"k": "2"}')
    with pytest.raises(InputError, match=r"c\.json: k='2': give a positive whole number"):
        CompressionConfig.from_file(tmp_path / "c.json")


def test_a_recipe_with_a_mark_and_anchors_is_taken(run, untrained, tmp_path):
    (tmp_path / "r.yaml").write_bytes(b"\xef\xbb\xbf" + b"batch_size: &n 2\nlogging_steps: *n\nseed: 1\n")
    asked = ["--model", "m", "--data", "d.json", "--compression", "ppe", "--device", "cpu"]
    code, _, err = run("train", "--config", tmp_path / "r.yaml", *asked)
    assert code == 0, err
    assert (untrained[0].batch_size, untrained[0].logging_steps, untrained[0].seed) == (2, 2, 1)


@pytest.mark.parametrize("count", [300, pytest.param(5000, marks=pytest.mark.slow)])
@pytest.mark.ci
def test_damaged_recipes(run, untrained, tmp_path, count):
    """Junk values and changed bytes: settings, or one line; every fifth file goes through the command line."""
    dice, file = mutations.dice("recipes"), tmp_path / "r.yaml"
    keys = [key for key in TrainConfig.__dataclass_fields__ if key not in FRAME]
    values = [value for value in PLAIN if not isinstance(value, str) or "\ud800" not in value]
    taken = {True: 0, False: 0}
    for number in range(count):
        key = dice.choice(keys)
        recipe = {"seed": 1, "video": {"fps": 2.0}, key: dice.choice([*values, *[PLAINS["training"][key]] * 20])}
        data = bytearray(yaml.safe_dump(recipe).encode())
        for _ in range(number % 3):
            data[dice.randrange(len(data))] = dice.randrange(256)
        file.write_bytes(bytes(data))
        try:
            with bounded(bytes(data)):
                TrainConfig(**FRAME | load_recipe(file))
            good = True
        except InputError as error:
            good = False
            said = str(error)
        if not good:
            assert "\n" not in said
        taken[good] += 1
        if number % 5 == 0:
            asked = ["--model", "m", "--data", "d.json", "--output", "o", "--device", "cpu"]
            result = run("train", "--config", file, *asked)
            assert good == (result[0] == 0)
            if not good:
                refused(result)
    assert min(taken.values()) > count // 20, taken
