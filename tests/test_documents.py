"""The documents: what can be pasted runs, tables are up to date, links lead somewhere, lines fit on a screen."""

import os
import re
import subprocess
import sys
from pathlib import Path

import check_house
import document_methods
import pytest
import yaml
from test_contributing import blocks

from ppe_npu.evaluation.benchmarks import registry
from ppe_npu.models import supported_classes

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted(path for pattern in check_house.DOCUMENTS for path in ROOT.glob(pattern))
README = (ROOT / "README.md").read_text(encoding="utf-8")

NO_NETWORK = """
import socket
def refuse(*_, **__): raise OSError("the snippet asked for the network")
socket.socket.connect = socket.getaddrinfo = socket.create_connection = refuse
"""


def links(text: str) -> list[str]:
    """Targets of the Markdown links and pictures of a page, outside of code."""
    text = re.sub(r"^```.*?^```|^ {4}.*?$|`[^`\n]*`", "", text, flags=re.M | re.S)
    return re.findall(r"\]\(([^)\s]+)\)", text)


def anchors(text: str) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", text, flags=re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def dead(page: Path) -> list[str]:
    """The relative links of a page that lead nowhere."""
    found = []
    for target in links(page.read_text(encoding="utf-8")):
        path, _, anchor = target.partition("#")
        file = page.parent / path if path else page
        if re.match(r"[a-z]+:", target):
            continue
        if not file.exists() or (anchor and anchor not in anchors(file.read_text(encoding="utf-8"))):
            found.append(target)
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_relative_links_lead_somewhere(page):
    assert dead(page) == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_files_that_a_page_names_are_there(page):
    if page.name in ("CONTRIBUTING.md", "log.md", "CHANGELOG.md"):
        pytest.skip("names files that are to be written, or were there once")
    named = re.findall(
        r"\b((?:ppe_npu|backends|scripts|tests)/[\w/]+\.(?:py|md|txt|json|yaml))\b", page.read_text(encoding="utf-8")
    )
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_a_dead_link_is_found(tmp_path):
    (tmp_path / "b.md").write_text("# One heading, two\n")
    page = tmp_path / "a.md"
    page.write_text(
        "[b](b.md) [h](b.md#one-heading-two) [web](https://x.y) `[code](no.md)`\n[c](c.md) ![p](p.png) [g](b.md#gone)\n"
    )
    assert dead(page) == ["c.md", "p.png", "b.md#gone"]


def test_wide_lines_are_named(tmp_path):
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "page.md").write_text(f"{'x' * 160}\n{'y' * 161}\n")
    assert [line.partition(" has")[0] for line in check_house.wide_lines(tmp_path)] == ["docs/page.md:2"]


def test_no_document_has_a_wide_line():
    assert check_house.wide_lines(ROOT) == []


@pytest.mark.slow  # `make docs` runs it
def test_the_first_snippet_of_the_readme_runs_as_pasted_without_a_network(tmp_path):
    snippet = next(block.code for block in blocks(ROOT / "README.md") if block.language == "python")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    asked = [sys.executable, "-c", NO_NETWORK + snippet]
    done = subprocess.run(asked, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "groups.png").read_bytes().startswith(b"\x89PNG")
    promised = snippet.splitlines()[-1].partition("# ")[2]
    assert promised
    assert done.stdout.startswith(promised)


def test_the_readme_has_one_snippet_and_it_has_a_dozen_lines():
    (snippet,) = (block.code for block in blocks(ROOT / "README.md") if block.language == "python")
    assert len([line for line in snippet.splitlines() if line]) == 12


def test_the_readme_states_one_number_before_it_tells_how_to_install():
    above = README.partition("## Install")[0]
    pitch = re.sub(r"!?\[.*?\]\(.*?\)", "", above, flags=re.S)  # pictures and links, which have the paper's number
    assert re.findall(r"\d+(?:\.\d+)?", pitch) == ["0.17"]
    assert len(pitch.split()) < 110


def test_counts_in_the_readme_are_those_of_the_code():
    classes = [name for name in supported_classes() if not name.startswith("PVC")]
    families = (ROOT / "docs" / "families.md").read_text(encoding="utf-8")
    assert len(re.findall(r"^\| `\w+ForConditionalGeneration` \|", families, flags=re.M)) == len(classes)
    assert f"{len(classes)} classes of [families]" in README
    assert f"{len(set(registry.OURS) - set(registry.EMBEDDED))} benchmarks on generated data" in README


def test_the_readme_is_short_and_its_table_of_methods_is_up_to_date():
    assert len(README.splitlines()) <= 130
    table = document_methods.markdown(described=False)
    assert document_methods.written(README, table) == README, "run scripts/document_methods.py"
    page, table = document_methods.PAGE.read_text(encoding="utf-8"), document_methods.markdown()
    assert document_methods.written(page, table + "\n" + document_methods.settings()) == page
    page = document_methods.POSITIONS.read_text(encoding="utf-8")
    assert document_methods.with_rules(page) == page, "run scripts/document_methods.py"


def test_numbers_of_the_readme_stand_on_the_pages_that_it_cites():
    demo, speed = ((ROOT / "docs" / name).read_text(encoding="utf-8") for name in ("demo.md", "benchmarks.md"))
    rows = [line.strip("| ").split(" | ") for line in demo.splitlines() if line.startswith("| ")]
    accuracies = {row[0]: [float(cell.partition(" ")[0]) for cell in row[1:6]] for row in rows[:11] if "(" in row[1]}
    named = {"dense": "dense", "Chat-UniVi, 25 %": "Chat-UniVi 25%", "keep-one, 25 %": "keep-one 25%",
             "**PPE, 25 %** (K = 4)": "PPE 25%"}  # fmt: skip
    for name, there in named.items():
        _, row, column, length, count = accuracies[there]
        mine = next(line for line in README.splitlines() if line.startswith(f"| {name} |")).replace("*", "")
        assert mine.strip("| ").split(" | ")[2:] == [f"{share:.2f}" for share in ((row + column) / 2, length, count)]
    for number in ("2.24x", "7.78x", "2114"):
        assert number in speed
        assert number.rstrip("x") in README.replace(",", "")


def test_words_of_the_glossary_are_used_by_the_code():
    words = words_of_the_glossary()
    code = " ".join(path.read_text(encoding="utf-8") for path in ROOT.glob("ppe_npu/**/*.py")).lower()
    assert len(words) >= 10
    assert len(set(words)) == len(words)
    assert [word for word in words if not re.search(rf"\b{word}s?\b", code)] == []


def words_of_the_glossary() -> list[str]:
    return re.findall(r"^\* \*\*(\w+)\*\*:", (ROOT / "docs" / "glossary.md").read_text(encoding="utf-8"), flags=re.M)


# Classes of the engine whose names are words of the field, or say what the class does.
PLAIN = {"block", "compression", "masking", "movable", "prefill", "prompt", "text", "token"}
PLAIN |= {"dropping", "joined", "joining", "rebuilding", "unpacked"}


def test_every_word_that_names_a_class_of_the_engine_is_in_the_glossary():
    code = "".join(path.read_text(encoding="utf-8") for path in ROOT.glob("ppe_npu/engine/*.py"))
    named = {word.lower().removesuffix("s") for word in re.findall(r"^class ([A-Z][a-z]+)\b", code, flags=re.M)}
    assert len(named) > 20
    assert sorted(named - PLAIN - set(words_of_the_glossary())) == []


def test_the_citation_names_the_package_and_the_paper():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    from ppe_npu import __version__

    assert citation["version"] == __version__
    assert citation["license"] == "Apache-2.0"
    assert citation["authors"] == [{"name": "ppe_npu contributors"}]
    assert "2510.22936" in citation["references"][0]["url"]
    assert f"## [{__version__}]" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
