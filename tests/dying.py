"""Runs work in a child process that is killed before one of its changes to the disk."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable

from tqdm import tqdm

CHANGES = ("replace", "rename", "unlink", "rmdir", "mkdir", "fsync")  # functions of os that files.py and others call


def be_alone() -> None:
    """To be called first in a child: hides its progress bars, and gives them a lock of their own. The one that tqdm
    makes is shared with all children, and stays taken if one is killed that holds it."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    tqdm.set_lock(threading.RLock())


def _work(work: Callable[[], object], kill_at: int, report) -> None:
    made = itertools.count(1)

    def killing(change):
        def call(*args, **kwargs):
            if next(made) == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)
            return change(*args, **kwargs)

        return call

    for name in CHANGES:
        setattr(os, name, killing(getattr(os, name)))
    be_alone()
    work()
    report.put(next(made) - 1)
    os._exit(0)


def in_child(work: Callable[[], object], kill_at: int = 0) -> int | None:
    """Call `work` in a forked child, which is killed before its change number `kill_at`; 0: it runs to its end.

    Returns:
        The number of changes it made; None if it was killed.
    """
    context = multiprocessing.get_context("fork")
    report = context.SimpleQueue()
    child = context.Process(target=_work, args=(work, kill_at, report))
    child.start()
    child.join()
    assert child.exitcode == (-signal.SIGKILL if kill_at else 0)
    return None if kill_at else report.get()
