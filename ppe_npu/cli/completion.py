"""`ppe-npu completion SHELL`: the script by which a shell completes this command line, with files and the names of
methods, benchmarks and protocols; shtab writes it."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import Any

from ppe_npu.utils.optional import optional

_PATHS = (
    *("adapter", "base", "bundle", "checkpoint", "config", "data", "data_root", "deepspeed", "folder", "image"),
    *("model", "out", "output", "resume_from_checkpoint", "show", "validation_data", "video"),
)


def run_completion(args: argparse.Namespace) -> int:
    """Print the script."""
    shtab = optional("shtab", "shell completion", "ppe-npu[completion]")
    from ppe_npu.cli.parser import build_parser

    parser = build_parser()
    _teach(parser, shtab.FILE)
    print(shtab.complete(parser, shell=args.shell))
    return 0


def _teach(parser: argparse.ArgumentParser, file: Any) -> None:
    """Say of each option whether files or names are its values. The parser is not for parsing any more.

    Args:
        file: shtab's word for any file.
    """
    known = _names()
    for action in _actions(parser):
        if action.choices is None and action.dest in known:
            action.choices = known[action.dest]
        elif action.choices is None and action.dest in _PATHS:
            action.complete = file  # type: ignore[attr-defined]  # read by shtab


def _names() -> dict[str, list[str]]:
    from ppe_npu.cli.parser import DEVICES
    from ppe_npu.config import PRESETS
    from ppe_npu.evaluation import benchmarks, protocols
    from ppe_npu.methods.base import published

    found = {"compression": list(PRESETS), "methods": [*published(), "all"], "device": list(DEVICES)}
    return found | {"benchmarks": benchmarks.names(), "protocol": protocols.names()}


def _actions(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    """The options of all commands."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                yield from _actions(command)
        else:
            yield action
