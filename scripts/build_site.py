"""Builds the documentation site in mkdocs' strict mode: a broken link or anchor is an error.

    python scripts/build_site.py --mkdocs .venv-docs/bin/mkdocs        # build/site; without --mkdocs only build/pages
    python scripts/build_site.py --no-pictures                         # takes a second

build/pages gets copies of docs/, README, CHANGELOG and CONTRIBUTING, a page for each method with its docstrings and a
picture of its groups, and a reference of the public names.
"""

from __future__ import annotations

import argparse
import inspect
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PAGES = ROOT / "build" / "pages"
CONFIG = ROOT / "scripts" / "mkdocs.yml"
COPIED = ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "LICENSE", "CITATION.cff")
REFERENCE = {
    "Compression": ("ppe_npu:CompressionConfig", "ppe_npu:compress", "ppe_npu:restore", "ppe_npu:from_pretrained",
                    "ppe_npu:align", "ppe_npu.inspect.report:CompressionReport", "ppe_npu.models.fused:fuse"),
    "Methods": ("ppe_npu.methods.base:Method", "ppe_npu.methods.view:View", "ppe_npu.methods.grouping:Grouping",
                "ppe_npu.methods.tower_methods:RebuildingMethod", "ppe_npu.methods.tower_methods:JoiningMethod",
                "ppe_npu.methods.leaving:Leaving"),
    "Inputs": ("ppe_npu.data.inputs:build_inputs", "ppe_npu.data.sampling:VideoSampling",
               "ppe_npu.data.pictures:load_image"),
    "Training": ("ppe_npu.training.args:TrainConfig", "ppe_npu.training.trainer:train",
                 "ppe_npu.training.adapters:Adapter", "ppe_npu.training.export:export",
                 "ppe_npu.training.convert:convert_record"),
    "Evaluation": ("ppe_npu.evaluation.runner:evaluate",),
}  # fmt: skip
_PIXELS = 19200  # height * width of the picture, whose tokens are 8 x 8 pixels
_RATIO = 0.3  # for the pictures: low enough that merges are visible
_OF_VIDEOS = (
    "It groups frames of videos; all methods on four frames, by `python scripts/draw_methods.py`.\n\n"
    "![groups of every method on four frames](../methods-video.png)"
)
_REBUILT = "There is no picture: patches leave early blocks of the vision tower, and its end rebuilds every one."


def write_pages(folder: Path, pictures: bool = True) -> None:
    """Write all pages of the site, and copy the files that they link to."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(ROOT / "docs", folder / "docs")
    for name in COPIED:
        shutil.copy(ROOT / name, folder / name)
    for page in list(folder.rglob("*.md")):
        _copy_linked(page, folder)
    (folder / "docs" / "reference.md").write_text(reference(), encoding="utf-8")
    from ppe_npu.methods.base import published
    from ppe_npu.methods.listing import Listed

    own = folder / "docs" / "methods"
    own.mkdir()
    drawn = _draw_all(own, [name for name in published() if undrawn(name) is None]) if pictures else {}
    for name in published():
        (own / f"{name}.md").write_text(method_page(Listed.of(name), drawn.get(name)), encoding="utf-8")
    rows = [f"* [`{name}`]({name}.md): {Listed.of(name).what}" for name in published()]
    index = "# All methods\n\n[What they share](../methods.md).\n\n" + "\n".join(rows) + "\n"
    (own / "index.md").write_text(index, encoding="utf-8")


def _copy_linked(page: Path, folder: Path) -> None:
    """Copy the files of the repository that a page links to into the site."""
    for target in re.findall(r"\]\(([^)\s#:]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
        there = page.parent / target
        source = ROOT / there.resolve().relative_to(folder.resolve())
        if not there.exists() and source.is_file():
            there.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, there)


def undrawn(name: str) -> str | None:
    """The text of a method's page in place of a picture of its groups, if it has none in a picture."""
    from ppe_npu.methods.listing import default, grouping, of_pictures

    if default(name).restores:
        return _REBUILT
    return _OF_VIDEOS if name in grouping() and name not in of_pictures() else None


def method_page(one: Any, picture: str | None) -> str:
    """A method's page: its facts, the docstrings of its file and its class, its settings, a picture of its groups."""
    from ppe_npu.methods.base import method_class

    cls = method_class(one.name)
    facts = {"paper": one.source, "place": ", ".join(one.places), "looks at": one.looks_at, "one cell is": one.scope,
             "budget": one.budget}  # fmt: skip
    table = "\n".join(f"| {key} | {value} |" for key, value in facts.items())
    fields = "\n".join(f"| `{key}` | `{value}` |" for key, value in one.fields.items())
    parts = [
        f"# {one.name}",
        "Generated from `" + inspect.getfile(cls).removeprefix(f"{ROOT}/") + "`; [all methods](index.md).",
        f"| | |\n|---|---|\n{table}",
        _text(sys.modules[cls.__module__].__doc__),
        f"## `{cls.__name__}`\n\n{_text(cls.__doc__)}",
        f"| setting | default |\n|---|---|\n{fields}" if fields else "",
    ]
    if picture is not None:
        command = (
            f"    ppe-npu describe --model tiny --image docs/house.png --prompt 'shape red' --min-pixels {_PIXELS} \\\n"
            f"        --max-pixels {_PIXELS} --compression {one.name}:{picture} --show groups.png"
        )
        parts += [
            "## Its groups",
            "By the tiny model with random weights (`docs/quickstart.md` saves one), whose features mean nothing: what "
            "a method does is to be seen, not how well.",
            f"![groups]({one.name}.png)",
            command,
        ]
    elif undrawn(one.name):
        parts += ["## Its groups", undrawn(one.name)]
    return "\n\n".join(filter(None, parts)) + "\n"


def reference() -> str:
    """The page with the signature and the docstring of everything in REFERENCE."""
    parts = [
        "# Reference",
        "What may be imported, with shapes, dtypes, units and errors; all else is the package's own.",
    ]
    for title, names in REFERENCE.items():
        parts.append(f"## {title}")
        for name in names:
            module, _, attribute = name.partition(":")
            value = getattr(import_module(module), attribute)
            parts.append(
                f"### {attribute}\n\n`from {module} import {attribute}`\n\n{_code(_signature(attribute, value))}"
            )
            parts.append(_code(inspect.getdoc(value) or ""))
    return "\n\n".join(parts) + "\n"


def _signature(name: str, value: Any) -> str:
    try:
        given = inspect.signature(value)
    except (TypeError, ValueError):
        return name
    arguments = ",\n".join(f"    {re.sub('<[^>]*>', '...', str(part))}" for part in given.parameters.values())
    return f"{name}(\n{arguments},\n)" if arguments else f"{name}()"


def _text(docstring: str | None) -> str:
    """A docstring in a code block, which keeps its line breaks and indents."""
    return _code(inspect.cleandoc(docstring or ""))


def _code(text: str) -> str:
    return f"```text\n{text}\n```" if text else ""


def _draw_all(folder: Path, names: Sequence[str]) -> dict[str, str]:
    """Draw a picture for each method; returns {method: its settings as on the command line}."""
    from PIL import Image

    from ppe_npu.demo import tiny

    model, processor = tiny.build_model(seed=0), tiny.build_processor()
    picture = Image.open(ROOT / "docs" / "house.png").convert("RGB")
    chat = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "shape red"}]}]
    text = processor.apply_chat_template(chat, add_generation_prompt=True)
    processor.image_processor.size = {"shortest_edge": _PIXELS, "longest_edge": _PIXELS}
    inputs = processor(text=[text], images=[picture], return_tensors="pt")
    found = {}
    for name in names:
        found[name] = _draw(folder / f"{name}.png", model, inputs, picture, name)
    return found


def _draw(file: Path, model: Any, inputs: Any, picture: Any, name: str) -> str:
    import torch

    from ppe_npu import CompressionConfig, compress
    from ppe_npu.inspect.show import draw_visual
    from ppe_npu.methods.listing import default

    own = default(name)
    values: dict[str, Any] = {"positions": "ppe", "k": 4}
    values |= {"ratio": _RATIO} if hasattr(own, "ratio") else {}
    values |= {"layer": [1]} if own.place == "layer" else {}
    values |= {"merge_blocks": [0]} if "merge_blocks" in vars(own) else {}  # the tiny tower has only this block
    compress(model, CompressionConfig.preset(name, **values))
    model.compression.keep_groups = True
    with torch.inference_mode():
        model(**inputs)
    sheet = draw_visual([picture], model.compression.trace.visuals()[0])
    sheet.thumbnail((900, 1200))
    sheet.save(file)
    return ",".join(f"{key}={value}".replace(" ", "") for key, value in values.items())


def main() -> int:
    """Write the pages, and build the site if mkdocs was named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mkdocs", help="the mkdocs program")
    parser.add_argument("--no-pictures", action="store_true")
    arguments = parser.parse_args()
    write_pages(PAGES, not arguments.no_pictures)
    if arguments.mkdocs is None:
        print(f"the pages are in {PAGES}")
        return 0
    return subprocess.run([arguments.mkdocs, "build", "--strict", "--config-file", CONFIG], check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
