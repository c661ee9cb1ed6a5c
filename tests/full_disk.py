"""Runs the command line in a child process whose disk is full from some moment on."""

from __future__ import annotations

import builtins
import errno
import io
import json
import os
import resource
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path


class Disk:
    """Counts files and folders made below a folder, and refuses those from number `at` on, or with `named` in their
    name."""

    def __init__(self, folder: Path, at: int, named: str):
        self.folder, self.at, self.named, self.made = os.path.abspath(folder), at, named, 0

    def ask(self, path) -> None:
        if isinstance(path, int) or not os.path.abspath(os.fsdecode(path)).startswith(self.folder):
            return
        self.made += 1
        if (self.at and self.made >= self.at) or (self.named and self.named in os.path.basename(os.fsdecode(path))):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)

    def fill(self) -> None:
        """Apply this to all calls in this process from now on."""
        plain, system, mkdir = builtins.open, os.open, os.mkdir

        def opening(file, mode="r", *args, **kwargs):
            if set("wax") & set(mode):
                self.ask(file)
            return plain(file, mode, *args, **kwargs)

        def creating(path, flags, *args, **kwargs):
            if flags & os.O_CREAT and not os.path.lexists(path):
                self.ask(path)
            return system(path, flags, *args, **kwargs)

        def making(path, *args, **kwargs):
            if not os.path.isdir(path):
                self.ask(path)
            return mkdir(path, *args, **kwargs)

        builtins.open = io.open = opening
        os.open, os.mkdir = creating, making


def run_full(argv: Sequence, folder: Path, at: int = 0, named: str = "", size: int = 0) -> tuple[int, str, int]:
    """Run a command in `folder`.

    Args:
        at: files and folders that it makes from this number on are refused; 0: none is.
        named: files and folders with this in their name are refused.
        size: the largest size of a file in bytes, also of one that a library writes; 0: no limit.

    Returns:
        (exit code, stderr, the number of files and folders it made).
    """
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        _run(argv, Disk(folder, at, named), size, writer)
    os.close(writer)
    with os.fdopen(reader, "rb") as told:
        said, _, last = told.read().decode(errors="replace").rpartition("\n")
    os.waitpid(child, 0)
    code, made = json.loads(last)
    return code, said, made


def _run(argv: Sequence, disk: Disk, size: int, writer: int) -> None:
    import torch

    from ppe_npu import cli

    sys.dont_write_bytecode = True  # Python itself would leave half-written modules
    torch.set_num_threads(1)  # the parent's threads are not in this child, and OpenMP would wait for them forever
    os.dup2(writer, 2)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1, closefd=False) for number in (1, 2))  # no capture
    os.chdir(disk.folder)
    if size:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
    disk.fill()
    try:
        code = cli.main([str(argument) for argument in argv])
    except BaseException:
        code = 99
        sys.stderr.write(traceback.format_exc())
    sys.stderr.flush()
    os.write(2, f"\n{json.dumps([code, disk.made])}".encode())
    os._exit(0)
