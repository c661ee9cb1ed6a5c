"""Every option of every command that takes a path: the path is checked before any long work, and no file of others is
overwritten."""

from __future__ import annotations

import argparse
import dataclasses
import errno
import json
import os
from pathlib import Path

import pytest
from command_line import refused

from ppe_npu import cli
from ppe_npu.cli.completion import _PATHS
from ppe_npu.cli.demo import check_demos_own
from ppe_npu.cli.looking import GroupsPicture
from ppe_npu.cli.parser import build_parser
from ppe_npu.config import CompressionConfig
from ppe_npu.data.pictures import load_image
from ppe_npu.data.videos import load_video
from ppe_npu.errors import InputError, UserError
from ppe_npu.evaluation.report import check_place
from ppe_npu.files import check_writable, write_json
from ppe_npu.settings import _rule
from ppe_npu.training.args import TrainConfig
from ppe_npu.training.data import check_records
from ppe_npu.training.recipes import load_recipe
from ppe_npu.training.trainer import train

PPE = CompressionConfig.preset("ppe")


def options() -> list[tuple[str, argparse.Action]]:
    """(command, option) for every option that takes a path."""
    commands = next(a for a in build_parser()._actions if isinstance(a, argparse._SubParsersAction)).choices
    return [(name, action) for name, parser in commands.items() for action in parser._actions if action.dest in _PATHS]


def taken(action: argparse.Action, text: str) -> str:
    """The path as the command gets it."""
    several = action.nargs == "+" or isinstance(action, argparse._AppendAction)
    args = argparse.Namespace(**{action.dest: [text] if several else text})
    cli._check_paths(args)
    found = getattr(args, action.dest)
    return found[0] if several else found


def test_home_is_home_for_every_option(tmp_path, monkeypatch):
    """In --output=~/run, a shell leaves the tilde to the command."""
    monkeypatch.setenv("HOME", str(tmp_path))
    assert {taken(action, "~/run") for _, action in options()} == {str(tmp_path / "run")}
    assert {taken(action, "./~") for _, action in options()} == {"./~"}
    for _, action in options():
        with pytest.raises(InputError, match="is an empty string"):
            taken(action, " ")
    config = TrainConfig("~/m", ["~/a.json"], "~/run", data_root="~/d", validation_data="~/b.json")
    paths = (config.model, *config.data, config.output, config.data_root, *config.validation_data)
    assert paths == tuple(str(tmp_path / name) for name in ("m", "a.json", "run", "d", "b.json"))


def test_no_option_writes_to_an_address():
    """They would make a folder "s3:" here."""
    written = [(name, action) for name, action in options() if action.dest in ("output", "out", "show")]
    assert {name for name, _ in written} >= {
        "train",
        "data",
        "convert",
        "export",
        "merge-lora",
        "eval",
        "report",
        "demo",
    }
    for _, action in written:
        for address in ("s3://bucket/run", "https://host/a.png", "file:///a.png"):
            with pytest.raises(InputError, match=f"--{action.dest} '{address}' is an address: name a place on this"):
                taken(action, address)


@pytest.mark.parametrize("there", [True, False])
def test_what_is_written_through_a_link_goes_where_it_leads(run, tmp_path, there):
    record = {
        "image": "a.png",
        "conversations": [{"from": "human", "value": "<image>?"}, {"from": "gpt", "value": "b"}],
    }
    write_json(tmp_path / "data.json", [record])
    link, target = tmp_path / "link.jsonl", tmp_path / "far.jsonl"
    link.symlink_to(target)
    if there:
        target.write_text("old")
    assert run("convert", "--data", tmp_path / "data.json", "--output", f"{link}/" if there else link)[0] == 0
    assert os.readlink(link) == str(target)
    assert json.loads(target.read_text())["image"] == ["a.png"]


def test_a_folder_behind_a_link_is_filled_where_it_is(tmp_path):
    """Its run knows the folder by the name that was given, because the link may lead elsewhere later."""
    (tmp_path / "far").mkdir()
    (tmp_path / "run").symlink_to("far")
    (tmp_path / "blob").write_text("as git-annex keeps it")
    (tmp_path / "r.md").symlink_to("blob")
    for _, action in options():
        if action.dest in ("output", "out", "show"):
            for name in ("run", "r.md"):
                assert taken(action, str(tmp_path / name)) == str(tmp_path / name)


@pytest.fixture
def closed(tmp_path):
    """Paths, without an ending, at which there can be no file."""
    (tmp_path / "file").write_text("mine")
    for ending in (".png", ".md", ".json"):
        os.mkfifo(tmp_path / f"pipe{ending}")
        (tmp_path / f"folder{ending}").mkdir()
    return [tmp_path / name for name in ("pipe", "folder", "file/below")]


def test_where_a_file_cannot_be_is_said_before_it_is_made(closed):
    for place in closed:
        with pytest.raises(UserError, match=r"(name|name another) (place|a file)"):
            GroupsPicture.of(f"{place}.png", None, PPE)
        with pytest.raises(UserError, match=r"(name|name another) (place|a file)"):
            check_place(place.with_suffix(".md"))


@pytest.mark.parametrize("text", ["text", "pipe", "folder"])
@pytest.mark.ci
def test_eval_says_before_the_weights_are_read_that_it_cannot_write(run, tiny_folder, tmp_path, monkeypatch, text):
    from ppe_npu.demo import scenes

    monkeypatch.setattr("ppe_npu.training.adapted.Checkpoint.load", lambda *_: pytest.fail("weights were read"))
    scenes.write_split(tmp_path / "data", "test", 1, 2, 1)
    (tmp_path / "text").write_text("mine")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "report.md").write_text("mine")
    place = tmp_path / text / ("below" if text == "text" else "")
    asked = ("--data-root", tmp_path / "data", "--output", place, "--device", "cpu", "--compression", "dense")
    refused(run("eval", "--model", tiny_folder, *asked), tmp_path / text)
    assert (tmp_path / "folder" / "report.md").read_text() == "mine"


@pytest.mark.parametrize("name", ["r.json", "r.md", "r.png", "r.html", "r-2.png"])
def test_a_report_takes_no_other_files_place(tmp_path, name):
    (tmp_path / name).write_text("[]")
    with pytest.raises(InputError, match=f"{name} is not part of a report and would be overwritten: move it,"):
        check_place(tmp_path / "r.md", html=True)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_the_pictures_of_other_protocols_are_looked_at_too(tmp_path):
    for innocent in ("r-1.png", "r-3.png", "r-2024.png"):
        (tmp_path / innocent).write_text("a picture of somebody's")
    check_place(tmp_path / "r.md")
    (tmp_path / "r-2.png").mkdir()
    with pytest.raises(UserError, match=r"r-2\.png is a folder: name a file in it"):
        check_place(tmp_path / "r.md")
    (tmp_path / "r-2.png").rename(tmp_path / "r-x.png")
    (tmp_path / "s-2.png").mkdir()
    check_place(tmp_path / "r.md")  # a report has no pictures of these names


def test_a_report_takes_an_earlier_reports_place(tmp_path):
    for text, name in (("# T\n\n## What the columns are\n", "r.md"), ('{"title": "T", "benchmarks": {}}', "r.json")):
        for left in ("r.png", "r.html"):
            (tmp_path / left).write_text("a picture")
        (tmp_path / name).write_text(text)
        check_place(tmp_path / "r.md", html=True)


def test_what_an_evaluation_left_of_its_report_is_its_own(tmp_path):
    write_json(tmp_path / "layout" / "dense" / "settings.json", {})
    for left, text in (("r.html", ""), ("r.png", ""), ("r.md", "![accuracy per question type](a.png)"), ("r.json", "")):
        (tmp_path / left).write_text(text)
        check_place(tmp_path / "r.md", html=True)


def test_two_processes_of_one_number_may_look_at_once(tmp_path, monkeypatch):
    """As in two containers, in both of which the program is process 1."""
    mkdir = Path.mkdir

    def at_once(self, *args, **options):
        mkdir(self, *args, **options)
        monkeypatch.setattr(Path, "mkdir", mkdir)
        check_writable(tmp_path / "report.md", file=True)

    monkeypatch.setattr("os.getpid", lambda: 1)
    monkeypatch.setattr(Path, "mkdir", at_once)
    check_writable(tmp_path / "report.md", file=True)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("left", ["data/base.jsonl", "data/x.jsonl", "seed0/base/a", "report.md", "methods.png"])
def test_a_demo_takes_no_other_files_place(tmp_path, left):
    (tmp_path / left).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / left).write_text("mine")
    with pytest.raises(InputError, match="but no demo: name a new folder"):
        check_demos_own(tmp_path)


@pytest.mark.parametrize(
    "left",
    ["data/images/base-00000.png", "data/clips/train-00000.mov", "seed0/start/config.json", "seed1/ppe/made_from.json"],
)
def test_a_demo_that_was_stopped_goes_on(tmp_path, left):
    """It may have been stopped between any two of its files; other files do not matter."""
    for name in (left, "data/base.jsonl", "report.md", "log.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    check_demos_own(tmp_path)
    assert check_demos_own(tmp_path / "new") is None


def test_all_data_files_are_looked_for_before_the_first_is_read(tmp_path, monkeypatch):
    (tmp_path / "a.json").write_text("[]")
    monkeypatch.setattr("ppe_npu.training.data.read_file", lambda path: pytest.fail(f"{path} was read"))
    with pytest.raises(InputError, match=r"gone\.json cannot be read"):
        check_records([tmp_path / "a.json", tmp_path / "gone.json"])
    with pytest.raises(InputError, match=r"data root .*a\.json is not a folder: name the one"):
        check_records(tmp_path / "a.json", data_root=tmp_path / "a.json")
    data, gone = str(tmp_path / "a.json"), str(tmp_path / "gone.json")
    config = TrainConfig("m", data, str(tmp_path / "run"), validation_data=gone)
    with pytest.raises(InputError, match=r"gone\.json cannot be read"):
        train(config)
    assert not (tmp_path / "run").exists()


KEYS = [field.name for field in dataclasses.fields(TrainConfig) if _rule(field).path]
ASKED = {"model": "m", "data": "d.json", "output": "o"}


@pytest.mark.parametrize("key", KEYS)
def test_every_path_of_a_recipe_is_looked_at_as_an_option_is(tmp_path, monkeypatch, key):
    """A path that may not be accessed is refused by TrainConfig, not by load_recipe: a flag may still replace it."""
    flags = {option.dest for command, option in options() if command == "train" and option.choices is None}
    assert {*KEYS, "config"} == {*flags, "compression"}
    closed, stat = str(tmp_path / "closed"), os.stat

    def refusing(path, *args, **named):
        if str(path).startswith(closed):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return stat(path, *args, **named)

    monkeypatch.setattr("os.stat", refusing)
    with pytest.raises(InputError, match=rf"^{key}='{closed}/x.json' cannot be accessed \(Permission denied\): name "):
        TrainConfig(**ASKED | {key: f"{closed}/x.json"})
    (tmp_path / "recipe.json").write_text(json.dumps(ASKED | {key: f"{closed}/x.json"}))
    assert load_recipe(tmp_path / "recipe.json")[key] == f"{closed}/x.json"


@pytest.mark.parametrize("key", KEYS)
def test_an_empty_path_is_none_where_none_is_needed(key):
    """For example from an unset variable, or in a recipe of an earlier version."""
    if {field.name: field.default for field in dataclasses.fields(TrainConfig)}[key] is None:
        assert getattr(TrainConfig(**ASKED | {key: ""}), key) is None
    else:
        with pytest.raises(InputError, match=f"^{key}.*''.*(: give a value, or leave it out|: choose one of)"):
            TrainConfig(**ASKED | {key: ""})


def test_a_name_that_is_no_file_is_not_looked_for(tmp_path, monkeypatch):
    """In a working folder that may not be entered, nothing can be looked for."""

    def refusing(path, *args, **named):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr("ppe_npu.utils.paths.may_be_read", lambda *_, **__: True)
    stat = os.stat
    monkeypatch.setattr("os.stat", lambda path, *a, **k: (stat if os.path.isabs(path) else refusing)(path, *a, **k))
    asked = {key: str(tmp_path / value) for key, value in ASKED.items()}
    assert TrainConfig(**asked).compression.positions == "ppe"


def test_a_name_that_is_too_long_is_said_wherever_it_would_stand(tmp_path):
    with pytest.raises(InputError, match=r"^output='.*' cannot be accessed \(File name too long\): name another"):
        TrainConfig(**ASKED | {"output": f"{tmp_path}/new/{'a' * 300}"})


def test_a_recipes_model_that_may_not_be_looked_at_is_one_line(run, tmp_path, monkeypatch):
    recipe, isfile = tmp_path / "recipe.json", Path.is_file

    def refusing(path):
        if path.is_relative_to(tmp_path / "closed"):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return isfile(path)

    (tmp_path / "closed").mkdir()
    access = os.access
    monkeypatch.setattr("os.access", lambda path, mode: str(tmp_path / "closed") != path and access(path, mode))
    monkeypatch.setattr(Path, "is_file", refusing)
    recipe.write_text(json.dumps(ASKED | {"model": str(tmp_path / "closed")}))
    refused(run("train", "--config", recipe, "--device", "cpu"), "model='", "(Permission denied): name another path")


def test_a_recipe_writes_to_no_address():
    with pytest.raises(InputError, match=r"^output='s3://bucket/run' is an address: name a place on this machine"):
        TrainConfig(**ASKED | {"output": "s3://bucket/run"})


def test_what_may_not_be_read_is_said_by_every_option(tmp_path, monkeypatch):
    """A superuser may read everything, so the system's answer is simulated."""
    (tmp_path / "file.png").write_bytes(b"")
    (tmp_path / "folder").mkdir()
    closed = [tmp_path / "file.png", tmp_path / "folder"]
    monkeypatch.setattr("os.access", lambda path, mode, **_: path not in (*closed, *map(str, closed)))
    for _, action in options():
        written = action.dest in ("output", "out", "show")
        for place in closed[written:]:
            with pytest.raises(
                InputError, match=rf"{action.dest.replace('_', '-')} .* \(Permission denied\): name another"
            ):
                taken(action, str(place))
        if written:  # a new file replaces it
            assert taken(action, str(closed[0])) == str(closed[0])
    for read, path in ((load_image, closed[0]), (load_video, closed[0]), (load_video, closed[1])):
        with pytest.raises(InputError, match="permission denied"):
            read(path)
