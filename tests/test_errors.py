"""What the user can fix is one line and an exit code; a fault of ours keeps its traceback, and asks for a report."""

from __future__ import annotations

import errno
import json
import os
import re
import subprocess
import sys
import traceback
from pathlib import Path

import pytest
import torch
import transformers
from command_line import refused

import ppe_npu
from ppe_npu import __version__
from ppe_npu.backends.device import DeviceError
from ppe_npu.backends.dispatch import ImplementationError
from ppe_npu.errors import InputError, TrainingError, first_line
from ppe_npu.utils.optional import optional
from ppe_npu.utils.reading import UnreadableError, read_json, read_text

COMMAND = "ppe_npu.cli.parity.run_parity"  # any command would do


def raising(error):
    def command(args):
        raise error

    return command


@pytest.mark.parametrize(
    "error",
    [ValueError("v"), ImportError("i"), OSError(errno.ENOENT, "o"), RuntimeError("r"), KeyError("k"), RecursionError()],
    ids=repr,
)
def test_a_fault_of_ours_is_raised_with_a_line_that_asks_for_a_report(run, monkeypatch, error):
    monkeypatch.setattr(COMMAND, raising(error))
    with pytest.raises(type(error)) as caught:
        run("parity", "--out", "a b")
    last = traceback.format_exception(caught.value)[-1]
    assert last == f"ppe-npu: this is a bug in ppe-npu {__version__}: please report all of this; command: " + (
        "ppe-npu parity --out 'a b'\n"
    )


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (InputError("a\n  b"), 2),
        (DeviceError("a b"), 2),
        (ImplementationError("a b"), 2),
        (UnreadableError("a b"), 2),
        (TrainingError("a b"), 1),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_the_user_can_mend_is_one_line(run, monkeypatch, error, code):
    monkeypatch.setattr(COMMAND, raising(error))
    assert run("parity") == (code, "", "ppe-npu: error: a b\n")
    monkeypatch.setenv("PPE_NPU_DEBUG", "1")
    with pytest.raises(type(error)):
        run("parity")


@pytest.mark.parametrize(
    ("said", "quoted"), [("a\nb", "a"), ("a:\n  b\nc", "a: b"), ("a:", "a:"), (" \n", "ValueError"), ("a\n", "a")]
)
def test_what_another_program_says_is_quoted_in_one_line(said, quoted):
    assert first_line(ValueError(said)) == quoted


def test_a_stop_from_the_keyboard_is_one_line(run, monkeypatch):
    monkeypatch.setattr(COMMAND, raising(KeyboardInterrupt()))
    assert run("parity") == (130, "", "ppe-npu: stopped\n")


class Rows(torch.utils.data.Dataset):
    def __init__(self, path):
        self.path = path

    def __len__(self):
        return 2

    def __getitem__(self, number):
        if self.path is None:
            return {}["a fault of ours"]
        return read_json(self.path)


@pytest.mark.ci
def test_errors_of_a_workers_process_are_told_apart_too(run, monkeypatch, tmp_path):
    def command(args):
        list(torch.utils.data.DataLoader(Rows(args.out), num_workers=1))

    monkeypatch.setattr(COMMAND, command)
    refused(run("parity", "--out", tmp_path / "gone.json"), f"ppe-npu: error: {tmp_path}/gone.json cannot be read (it")
    with pytest.raises(KeyError, match="DataLoader worker"):
        run("parity")


class Broken:
    """A standard output to which nothing can be written."""

    def __init__(self, number, file):
        self.number, self.file = number, file

    def write(self, text):
        raise OSError(self.number, os.strerror(self.number))

    def flush(self):
        pass

    def fileno(self):
        return self.file.fileno()


@pytest.mark.parametrize(
    ("number", "code", "said"),
    [(errno.EPIPE, 141, ""), (errno.ENOSPC, 2, "standard output cannot be written (No space")],
)
@pytest.mark.ci
def test_an_output_that_takes_no_more(run, monkeypatch, tmp_path, number, code, said):
    """`ppe-npu ... | head` is quiet; a full disk under `> file` is one line."""
    monkeypatch.setattr(COMMAND, lambda args: print("row"))
    with open(tmp_path / "out", "w") as file:
        monkeypatch.setattr(sys, "stdout", Broken(number, file))
        result = run("parity")
    assert result[0] == code
    assert said in result[2]
    assert result[2].count("\n") == bool(said)


def test_paths_that_the_system_refuses_are_one_line(run, tmp_path):
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for path, words in (("x" * 300, "too long"), (tmp_path / "loop" / "a", "symbolic links")):
        refused(run("data", "--model", path, "--data", "d.json"), "--model", words)
        refused(run("train", "--model", "m", "--data", "d.json", path), "--data", words)
    assert "too long" not in run("describe", "--model", tmp_path / "m", "--image", "i", "--prompt", "x" * 300)[2]


# -- optional packages and files ---------------------------------------------------------------------------------------


def test_packages_that_are_missing_or_broken_are_named_with_the_remedy(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "halved_package.py").write_text("import another_package_that_is_not_there\n")
    (tmp_path / "linked_package.py").write_text("raise OSError('libnone.so: cannot open shared object file')\n")
    (tmp_path / "moody_package.py").write_text("raise ValueError('Key backend: x is not a valid value')\n")
    with pytest.raises(InputError, match=r"^work needs gone_package, which is not installed: pip install gone$"):
        optional("gone_package.part", "work", "gone")
    clone = re.escape(str(Path(ppe_npu.__file__).resolve().parents[1]))
    with pytest.raises(InputError, match=rf'not installed: pip install "{clone}\[eval\]"$'):
        optional("gone_package", "work", "ppe-npu[eval]")
    reasons = {"halved": "another_package_that_is_not_there", "linked": "libnone.so", "moody": "Key backend: x"}
    for name, why in ((f"{name}_package", why) for name, why in reasons.items()):
        with pytest.raises(InputError, match=rf"work needs {name}, which cannot be imported \(.*{why}.*pip install"):
            optional(name, "work", name)
    assert optional("json", "work", "json") is json


def test_texts_are_read_or_refused(tmp_path):
    (tmp_path / "marked").write_bytes(b"\xef\xbb\xbfgr\xc3\xbcn")
    assert read_text(tmp_path / "marked") == "grün"
    for path, words in ((tmp_path, "it is a folder"), ("a\0b", "null"), ("/dev/zero", "not a regular file")):
        with pytest.raises(UnreadableError, match=words) as error:
            read_text(path)
        assert error.value.why in str(error.value)
    with pytest.raises(UnreadableError, match="it has 8 bytes, more than the limit of 7"):
        read_text(tmp_path / "marked", 7)


@pytest.mark.parametrize("why", ["libcudart.so.13: cannot open shared object file", "undefined symbol: x"])
@pytest.mark.ci
def test_a_torch_that_cannot_be_imported_is_the_users_and_doctor_says_so(tmp_path, why):
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text(f"raise ImportError({why!r})\n")
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}:{Path(ppe_npu.__file__).parents[1]}"}

    def asked(*words):
        command = [sys.executable, "-m", "ppe_npu.cli", *words]
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)

    done = asked("parity")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"ppe-npu: error: torch cannot be imported ({why}): install a build of it")
    assert done.stderr.count("\n") == 1
    done = asked("doctor", "--json")
    found = json.loads(done.stdout)
    assert done.returncode == 1
    assert any(why in problem for problem in found["problems"])
    assert found["versions"]["transformers"] == transformers.__version__
    assert found["devices"] == {}
