"""Files and folders are whole or absent after errors, kills and full disks, which are reported in one line."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import resource
import shutil
import signal
import stat
import time
from argparse import Namespace
from contextlib import nullcontext

import pytest
import torch
from filelock import FileLock, SoftFileLock, Timeout
from safetensors.torch import save_file

from ppe_npu import files
from ppe_npu.cli.train import _embedded
from ppe_npu.errors import FileError, InputError, UserError
from ppe_npu.evaluation import sharing
from ppe_npu.files import locked, new_folder, recover, write_json, write_text, writing
from ppe_npu.training import output


def child(function, *arguments) -> int | None:
    """Runs a function in a process of its own; returns its exit code, which is negative for a signal."""
    process = multiprocessing.get_context("fork").Process(target=function, args=arguments)
    process.start()
    process.join()
    return process.exitcode


def names(folder) -> set[str]:
    return {path.name for path in folder.iterdir()}


# -- what cannot be written --------------------------------------------------------------------------------------------


def limited(size: int, write, expected: str, named: str) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
    try:
        write()
    except FileError as error:
        text = str(error)
        os._exit(0 if named in text and expected in text and "\n" not in text and isinstance(error, UserError) else 3)
    os._exit(4)


def save_torch(folder):
    with writing(folder):
        torch.save({"weight": torch.zeros(4096)}, folder / "optimizer.pt")


def save_safetensors(folder):
    with writing(folder):
        save_file({"weight": torch.zeros(4096)}, folder / "model.safetensors")


def save_tokenizer(folder):
    from tokenizers import Tokenizer, models

    file = str(folder / "tokenizer.json")  # as transformers does
    with writing(folder):
        Tokenizer(models.WordLevel({str(n): n for n in range(1000)}, unk_token="0")).save(file)


def copy(folder):
    with writing(folder):
        shutil.copy2(__file__, folder / "copy.py")  # the error names this file first, which is read


@pytest.mark.parametrize(
    ("write", "named"),
    [
        (copy, "copy.py"),
        (lambda folder: write_text(folder / "a.md", "x" * 9000), "a.md"),
        (save_torch, "optimizer.pt"),
        (save_safetensors, "model.safetensors"),
        (save_tokenizer, "tokenizer.json"),
    ],
)
def test_a_file_that_grows_too_large_is_named_whoever_writes_it(tmp_path, write, named):
    """A limit, a quota and a full disk all show as an error of a write."""
    code = child(limited, 2000, lambda: write(tmp_path), "it exceeds the file size limit): raise the limit", named)
    assert code == 0
    assert not any(name.endswith(".md.tmp") for name in names(tmp_path)), "nothing half written takes up room"


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.ENOSPC, "no space is left on its disk): make room there"),
        (errno.EDQUOT, "quota is used up): make room there"),
        (errno.EACCES, "permission denied): change the permissions there"),
        (errno.EROFS, "read-only): name another place"),
    ],
)
def test_the_remedy_is_that_of_the_fault_and_the_old_content_stays(tmp_path, monkeypatch, number, words):
    write_text(tmp_path / "a.md", "old")

    def fails(handle):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(files.os, "fsync", fails)
    with pytest.raises(FileError) as error:
        write_text(tmp_path / "a.md", "new")
    assert str(error.value).startswith(f"{tmp_path / 'a.md'} cannot be written (")
    assert words in str(error.value)
    assert (tmp_path / "a.md").read_text() == "old"
    assert names(tmp_path) == {"a.md"}


def test_a_path_through_a_file_or_of_a_folder_is_named(tmp_path):
    write_text(tmp_path / "file", "")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "full").touch()
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "file" / "a.json", tmp_path / "folder", tmp_path / "pipe"):
        with pytest.raises(FileError, match=str(tmp_path / path.relative_to(tmp_path).parts[0])):
            write_json(path, {})
    with (
        pytest.raises(FileError, match="a file has the name that a folder needs"),
        new_folder(tmp_path / "file" / "new"),
    ):
        raise AssertionError
    assert names(tmp_path) == {"file", "folder", "pipe"}


def test_errors_that_are_no_writers_pass_as_they_are(tmp_path):
    for raised in (RuntimeError("shapes differ"), ValueError("no"), ConnectionResetError(errno.ECONNRESET, "gone")):
        with pytest.raises(type(raised)) as error, writing(tmp_path / "model"):
            raise raised
        assert error.value is raised
    with pytest.raises(FileNotFoundError), writing(tmp_path / "model"):
        os.stat("/somewhere/else.png")  # a file that is read, not written


# -- folders -----------------------------------------------------------------------------------------------------------


def fill(path, content: str) -> None:
    with new_folder(path) as folder:
        (folder / "content").write_text(content)


@pytest.fixture(params=["exchange", "two renames"])
def way(request, monkeypatch):
    if request.param == "two renames":
        monkeypatch.setattr(files, "_exchange", lambda one, other: False)
    return request.param


def test_a_new_folder_takes_the_place_of_the_old_one(tmp_path, way):
    fill(tmp_path / "final", "old")
    with pytest.raises(TypeError):
        fill(tmp_path / "final", content=5)
    assert (tmp_path / "final" / "content").read_text() == "old"
    fill(tmp_path / "final", "new")
    assert (tmp_path / "final" / "content").read_text() == "new"
    assert names(tmp_path) == {"final"}


def test_a_device_is_no_place_for_a_folder(tmp_path, way):
    """Root may rename over /dev/null, which would break every program on the machine."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("pipe")
    for place in (tmp_path / "pipe", tmp_path / "link"):
        for write in (lambda path: fill(path, "new"), files.check_writable, lambda path: files.write_text(path, "new")):
            with pytest.raises(FileError, match=f"{place.name} is a device or a pipe, not a file or a folder"):
                write(place)
    assert names(tmp_path) == {"pipe", "link"}
    assert stat.S_ISFIFO(os.stat(tmp_path / "pipe").st_mode)


def test_folders_and_names_are_on_the_disk_before_the_old_ones_are_gone(tmp_path, way, monkeypatch):
    """Safe in a power cut: a file is synced before it is renamed, and the rename before anything is removed."""
    fill(tmp_path / "final", "old")
    done, remove, sync = [], files.remove, files.os.fsync
    monkeypatch.setattr(files, "remove", lambda path: (done.append("remove") if path.exists() else None, remove(path)))
    monkeypatch.setattr(
        files.os, "fsync", lambda handle: (done.append(os.readlink(f"/proc/self/fd/{handle}")), sync(handle))
    )
    fill(tmp_path / "final", "new")
    assert [os.path.basename(name) for name in done[:2]] == ["content", f".final.{os.getpid()}.tmp"]
    assert done[2:4] == [str(tmp_path), "remove"]


def die_at(path, call: int, fallback: bool) -> None:
    """Fills the folder again, but is killed before a rename, an exchange or a removal."""
    if fallback:
        files._exchange = lambda one, other: False
    calls = 0
    for name in ("rename", "rmtree"):
        owner = files.os if name == "rename" else files.shutil
        original = getattr(owner, name)

        def dies(*arguments, original=original, **options):
            nonlocal calls
            calls += 1
            if calls == call:
                os.kill(os.getpid(), signal.SIGKILL)
            return original(*arguments, **options)

        setattr(owner, name, dies)
    fill(path, "new")
    os._exit(0)


@pytest.mark.parametrize("fallback", [False, True])
def test_final_is_there_at_every_moment_or_comes_back(tmp_path, fallback):
    found = []
    for call in range(1, 5):
        path = tmp_path / f"{call}" / "final"
        fill(path, "old")
        killed = child(die_at, path, call, fallback) == -signal.SIGKILL
        if not fallback:
            assert path.exists(), "two folders change places in one step"
        recover(path)
        assert names(path.parent) == {"final"}, "nothing else is left, or missing"
        found.append((killed, (path / "content").read_text()))
    # Before the two renames and between them the old one; before the old one is removed, the new one.
    renames = 2 if fallback else 0
    assert found[: renames + 1] == [(True, "old")] * renames + [(True, "new")]
    assert found[-1] == (False, "new")


def hold(path, ready) -> None:
    with new_folder(path) as folder:
        (folder / "content").write_text("half")
        ready.set()
        time.sleep(60)


def test_what_a_living_process_fills_is_left_alone_and_a_dead_ones_is_removed(tmp_path):
    context = multiprocessing.get_context("fork")
    ready = context.Event()
    other = context.Process(target=hold, args=(tmp_path / "final", ready))
    other.start()
    assert ready.wait(30)
    fill(tmp_path / "final", "mine")
    assert names(tmp_path) == {"final", f".final.{other.pid}.tmp"}
    other.kill()
    other.join()
    fill(tmp_path / "final", "mine again")
    assert names(tmp_path) == {"final"}
    assert (tmp_path / "final" / "content").read_text() == "mine again"


# -- locks -------------------------------------------------------------------------------------------------------------


def holds(folder, ready) -> None:
    with locked(FileLock(folder / "lock"), folder):
        ready.set()
        time.sleep(60)


def test_a_lock_is_one_processs_and_a_killed_one_leaves_none(tmp_path):
    context = multiprocessing.get_context("fork")
    ready = context.Event()
    other = context.Process(target=holds, args=(tmp_path, ready))
    other.start()
    assert ready.wait(30)
    with pytest.raises(Timeout), locked(FileLock(tmp_path / "lock"), tmp_path, wait=0):
        pass
    other.kill()
    other.join()
    with locked(FileLock(tmp_path / "lock"), tmp_path, wait=0):
        assert (tmp_path / "lock").exists()


def without_flock(lock, monkeypatch):
    """Like a file system without flock: newer releases of filelock fall back to a file, older ones raise."""
    if lock is SoftFileLock:
        monkeypatch.setattr("filelock.FileLock", SoftFileLock)
        monkeypatch.setattr(sharing, "FileLock", SoftFileLock)
        monkeypatch.setattr(output, "FileLock", SoftFileLock)
    else:
        monkeypatch.setattr(FileLock, "_acquire", lambda _: (_ for _ in ()).throw(NotImplementedError("no flock")))


@pytest.mark.parametrize("lock", [SoftFileLock, FileLock], ids=["a file in its place", "an error"])
@pytest.mark.parametrize(
    "work",
    [
        lambda folder: output.sole_run(folder),
        lambda folder: sharing.Share(folder, [0]),
        lambda folder: nullcontext(_embedded(Namespace(output=folder, seed=0))),
    ],
    ids=["training", "evaluation", "the embedded data"],
)
def test_a_folder_without_locks_is_refused_by_whoever_needs_one(tmp_path, monkeypatch, work, lock):
    without_flock(lock, monkeypatch)
    refused = pytest.raises(InputError, match=r"^output .* is on a file system without file locks .*: name a folder on")
    with refused, work(tmp_path / "out"):
        pass
    assert not [file for file in (tmp_path / "out").rglob("*") if file.is_file() and file.suffix != ".lock"]


def test_json_with_half_a_character_is_written_and_read_again(tmp_path):
    """The system gives a file name with bytes that are not text in this form."""
    value = {"model": os.fsdecode(b"runs/\xff"), "é": ["中", "\ud800"]}
    file = write_json(tmp_path / "a.json", value)
    assert json.loads(file.read_text(encoding="utf-8")) == value
    assert "é" in file.read_text(encoding="utf-8")
