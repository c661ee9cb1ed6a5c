"""Every code block in docs/ and README.md does what the page says: Python runs, fenced or indented; commands run, or
are at least accepted by the program; make's targets exist.

A tiny model takes the place of a checkpoint on the hub, and its folder that of PATH; files that pages name (a photo, a
clip, a run with an adapter) are made here. test_contributing.py follows the blocks of CONTRIBUTING.md.
"""

from __future__ import annotations

import ast
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from test_contributing import blocks

from ppe_npu.checkpoints.compressed import note_compression
from ppe_npu.cli.parser import build_parser
from ppe_npu.config import CompressionConfig

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
HUB = "Qwen/Qwen2.5-VL-3B-Instruct"
# What a page assumes before its first block: the reader's own values.
GIVEN = {
    "compatibility.md": "import torch\nfrom PIL import Image\n"
    "from ppe_npu.demo.tiny import build_model, build_processor\n"
    "from ppe_npu import CompressionConfig, compress\nmodel, processor = build_model(0), build_processor()\n"
    "compress(model, CompressionConfig.preset('ppe', k=4))\n"
    "text = '<|vision_start|><|image_pad|><|vision_end|>row red'\n"
    "inputs = processor(text=[text], images=[Image.new('RGB', (48, 48))], return_tensors='pt')\n"
    "labels = shift_labels = inputs['input_ids']\nweights = torch.ones(labels.shape)\n"
    "my_loss = lambda logits, labels, weights: (logits.shape[1], labels.shape[1], weights.shape[1])\n"
    "from types import SimpleNamespace\nfrom accelerate import Accelerator\n"
    "trainer = SimpleNamespace(accelerator=Accelerator(cpu=True))\n",
    "pvc.md": "from PIL import Image\nfrom ppe_npu import CompressionConfig, compress\n"
    "from ppe_npu.demo.tiny import build_model, build_processor\nmodel, processor = build_model(0), build_processor()\n"
    "model.config.vision_config.depth = 6\nmodel = type(model)(model.config).eval()\n"
    "text = '<|vision_start|><|image_pad|><|vision_end|>row red'\n"
    "inputs = processor(text=[text], images=[Image.new('RGB', (48, 48))], return_tensors='pt')\n",
    "lora.md": "import ppe_npu\nbase = 'Qwen/Qwen2.5-VL-3B-Instruct'\n",
}
# The beginnings of Python blocks that are not run here, and why.
ELSEWHERE = {
    "from llamafactory": "tests/frameworks runs it in an environment that has LLaMA-Factory",
    "from swift": "tests/frameworks runs it in an environment that has ms-swift",
    "model.model.language_model.compile()": "inductor has not been run by us, as the page says",
}
# Runs in the desk: the blocks of a page share a namespace, as if typed one after the other.
RUNNER = """
import json, shlex, traceback
from ppe_npu.cli import main
said = {}
for name, code, space in json.load(open("blocks.json")):
    try:
        if code.startswith("ppe-npu "):
            assert main(shlex.split(code, comments=True)[1:]) == 0, code
        else:
            spaces = globals().setdefault("spaces", {})
            exec(compile(code, name, "exec"), spaces.setdefault(space, {"__name__": "__main__"}))
    except BaseException:
        said[name] = traceback.format_exc()
json.dump(said, open("said.json", "w"))
"""


def python_blocks():
    """(page:line, code, page) of every block of Python that is run here, in the order of its page."""
    found = []
    for page in PAGES:
        own = [(block.line, block.code) for block in blocks(page) if block.language == "python"]
        for line, code in sorted([*own, *indented(page.read_text(encoding="utf-8"))]):
            if not code.startswith(tuple(ELSEWHERE)):
                found.append((f"{page.name}:{line}", code, page.name))
    return found


def indented(text: str) -> list[tuple[int, str]]:
    """(line, code) of every block that is indented by four spaces, outside of fences, and does something in Python."""
    found: list[tuple[int, str]] = []
    lines: list[str] = []
    text, first = re.sub(r"(?ms)^```.*?^```$", lambda fence: "-" + "\n-" * fence[0].count("\n"), text), 0
    for number, line in enumerate([*text.splitlines(), "end"], start=1):
        if line.startswith("    ") or (lines and not line):
            first = first if lines else number
            lines.append(line[4:])
        elif lines:
            code, lines = "\n".join(lines).rstrip() + "\n", []
            if does_something(code):
                found.append((first, code))
    return found


def does_something(code: str) -> bool:
    try:
        nodes = list(ast.walk(ast.parse(code)))
    except SyntaxError:
        return False
    return any(isinstance(node, (ast.Import, ast.ImportFrom, ast.Call, ast.Assign)) for node in nodes)


def lines_of(program: str) -> list[tuple[str, str]]:
    """(page:line, command) of every line in a block that begins with the program's name; its continuations joined."""
    found = []
    for page in PAGES:
        lines = page.read_text(encoding="utf-8").splitlines()
        for number, line in enumerate(lines):
            if not re.match(rf"(?: {{4}})?{program} ", line) or (number and lines[number - 1].endswith("\\")):
                continue
            while line.endswith("\\"):
                number += 1
                line = line[:-1] + " " + lines[number].strip()
            found.append((f"{page.name}:{number + 1}", line.strip()))
    return found


COMMANDS = lines_of("ppe-npu")
# Commands for which the desk has everything; the others name data or devices that no desk has.
RUN = ("ppe-npu doctor", "ppe-npu describe", "ppe-npu merge-lora", "ppe-npu methods", "ppe-npu convert")


def runnable(command: str) -> bool:
    return command.startswith(RUN) and not re.search(r"\.\.\.|runs/demo|/new/place|\[--", command)


@pytest.fixture(scope="module")
def desk(tmp_path_factory, tiny_folder):
    """A folder with everything that the pages name."""
    from fixtures import encode_clip
    from PIL import Image

    folder = tmp_path_factory.mktemp("desk")
    for name in ("photo.jpg", "a.png"):
        Image.radial_gradient("L").convert("RGB").resize((480, 360)).save(folder / name)
    encode_clip(folder / "clip.mp4")
    talk = [{"role": "user", "content": "<image>row"}, {"role": "assistant", "content": "3"}]
    (folder / "theirs.jsonl").write_text(json.dumps({"messages": talk, "images": ["a.png"]}))
    from ppe_npu.checkpoints.loading import load_model
    from ppe_npu.training.adapters import Adapter, add_adapter, save_adapter

    save_adapter(add_adapter(load_model(tiny_folder), Adapter("lora", rank=2)), folder / "runs" / "x" / "final")
    (folder / "runs" / "x" / "final" / "compression.json").write_text(json.dumps({"k": 4}))
    note_compression(Path(shutil.copytree(tiny_folder, folder / "merged")), CompressionConfig.preset("ppe", k=4))
    return folder


@pytest.fixture(scope="module")
def followed(desk, tiny_folder) -> dict[str, str]:
    """{page:line: the traceback of a block that failed}."""
    given = [(f"{page}:given", code.replace(HUB, tiny_folder), page) for page, code in GIVEN.items()]
    asked = [(name, code.replace(HUB, tiny_folder), page) for name, code, page in python_blocks()]
    for number, (name, command) in enumerate(COMMANDS):
        if runnable(command):
            code = shlex.join(shlex.split(command, comments=True))
            code = re.sub(r"\bPATH\b", tiny_folder, code.replace(HUB, tiny_folder))
            code = code.replace("--output merged", f"--output merged{number}")
            if "describe" in command:  # the tiny model's own pictures are smaller than those that pages speak of
                code += " --max-new-tokens 1" + " --min-pixels 19200 --max-pixels 19200" * ("-pixels" not in code)
            asked.append((name, code, ""))
    (desk / "blocks.json").write_text(json.dumps(given + asked))
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", RUNNER], cwd=desk, env=environment, capture_output=True, text=True, timeout=300
    )
    assert (desk / "said.json").exists(), done.stdout + done.stderr
    return json.loads((desk / "said.json").read_text())


@pytest.mark.slow  # `make docs` runs it
@pytest.mark.parametrize("name", [*(f"{page}:given" for page in GIVEN), *(name for name, _, _ in python_blocks())])
def test_a_block_of_python_runs(followed, name):
    if "is supported from transformers" in followed.get(name, ""):
        pytest.skip("an older transformers than the page is about")
    assert followed.get(name, "") == ""


@pytest.mark.parametrize(("name", "command"), COMMANDS, ids=[name for name, _ in COMMANDS])
def test_a_command_is_one_that_the_program_takes(name, command):
    if re.search(r"\.\.\. | \[", command):
        command = re.sub(r"\.\.\. ", "", re.sub(r"\[(--[\w-]+)(?: [^\]]*)?\]", "", command))
    words = shlex.split(re.split(r" 2>&1| \| tee", command)[0], comments=True)[1:]
    words = words[:1] + [word for word in words[1:] if word not in ("...", "|")]
    required = {"describe": ["--model", "x"], "data": ["--model", "x", "--data", "y"]}.get(words[0], [])
    build_parser().parse_args([*words, *required])


@pytest.mark.slow  # `make docs` runs it
@pytest.mark.parametrize("name", [name for name, command in COMMANDS if runnable(command)])
def test_a_command_runs(followed, name):
    assert followed.get(name, "") == ""


def test_the_pages_have_blocks_of_every_kind():
    assert len(python_blocks()) >= 10
    pages = {page for _, code, page in python_blocks() if code.startswith("from ppe_npu.compat")}
    assert pages == {"compatibility.md"}
    for beginning in ELSEWHERE:
        assert any(f"    {beginning}" in page.read_text(encoding="utf-8") for page in PAGES), beginning
    text = "text\n\n    a = 1\n\n    b = 2\n\n```python\n    c = 3\n```\n    make test\n"
    assert indented(text) == [(3, "a = 1\n\nb = 2\n")]
    assert sum(runnable(command) for _, command in COMMANDS) >= 6
    assert len(COMMANDS) >= 25


def test_every_target_of_make_is_there():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.M))
    variables = set(re.findall(r"\b([A-Z_]+)=", (ROOT / "Makefile").read_text()))
    named = lines_of("make")
    assert len(named) >= 15
    for where, command in named:
        words = [word for word in shlex.split(command.partition("  ")[0], comments=True)[1:] if word != "..."]
        goals = [word for word in words if "=" not in word and word != "..."]
        assert set(goals) <= targets, where
        assert {word.partition("=")[0] for word in words if "=" in word} <= variables, where
