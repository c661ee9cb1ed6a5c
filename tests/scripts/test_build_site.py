"""The site's pages: one for each method, a reference, and no dead link among them."""

from __future__ import annotations

import build_site
import pytest
import yaml
from test_documents import dead

from ppe_npu.methods.base import published
from ppe_npu.methods.listing import Listed


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site") / "pages"
    build_site.write_pages(folder, pictures=False)
    return folder


def test_no_link_leads_nowhere(pages):
    found = {str(page.relative_to(pages)): dead(page) for page in pages.rglob("*.md")}
    assert {name: links for name, links in found.items() if links} == {}
    assert len(found) > 40


def test_every_method_has_a_page_of_its_docstrings(pages):
    for name in published():
        page = (pages / "docs" / "methods" / f"{name}.md").read_text()
        one = Listed.of(name)
        assert one.what.split(" ")[0] in page
        assert f"| paper | {one.source} |" in page
        assert all(f"| `{key}` |" in page for key in one.fields)


def test_every_method_has_a_picture_or_its_page_says_why_not(tmp_path):
    reasons = {name: build_site.undrawn(name) for name in published()}
    named = [name for name in published() if reasons[name] is None]
    assert {*published()} - {*named} == {"events", "ipcv"}
    some = {"pixelprune": "positions=ppe,k=4", "tome_tower": "positions=ppe,k=4,ratio=0.3,merge_blocks=[0]"}
    assert set(some) <= set(named)
    assert build_site._draw_all(tmp_path, list(some)) == some
    for name in some:
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert f"![groups]({name}.png)" in build_site.method_page(Listed.of(name), some[name])
    for name in ("events", "ipcv"):
        assert reasons[name] in build_site.method_page(Listed.of(name), None)


def test_the_reference_has_what_can_be_imported(pages):
    text = (pages / "docs" / "reference.md").read_text()
    for names in build_site.REFERENCE.values():
        for name in names:
            module, _, attribute = name.partition(":")
            assert f"from {module} import {attribute}" in text
    assert "Raises:" in text


def test_the_menu_names_pages_that_are_there(pages):
    class Loader(yaml.SafeLoader):
        pass

    Loader.add_multi_constructor("", lambda loader, suffix, node: None)
    menu = yaml.load(build_site.CONFIG.read_text(), Loader)["nav"]

    def named(part):
        inner = part.values() if isinstance(part, dict) else part if isinstance(part, list) else None
        return [part] if inner is None else [name for value in inner for name in named(value)]

    assert [name for name in named(menu) if not (pages / name).is_file()] == []
    in_menu = {name for name in named(menu) if name.startswith("docs/") and "/methods/" not in name}
    own = {str(page.relative_to(pages)) for page in (pages / "docs").glob("*.md")}
    assert own - in_menu == set(), "a page that no menu names"


def test_a_picture_of_a_methods_groups_is_drawn(tmp_path):
    drawn = build_site._draw_all(tmp_path, ["uniform"])
    assert drawn == {"uniform": "positions=ppe,k=4,ratio=0.3"}
    assert (tmp_path / "uniform.png").read_bytes()[:4] == b"\x89PNG"
    page = build_site.method_page(Listed.of("uniform"), drawn["uniform"])
    assert "--compression uniform:positions=ppe,k=4,ratio=0.3" in page
    assert "![groups](uniform.png)" in page
