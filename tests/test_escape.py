"""Foreign text reads as it is where it is printed, and acts neither as markup nor as a command to a terminal."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ppe_npu.utils.escape import brief, markdown, printable

HOSTILE = (
    "x|y<script>alert(1)</script>\n# H", "[l](javascript:alert(4))", "![i](http://x/y.png)", "<img src=x onerror=a()>",
    "`code`", "**b** __b__ _i_ ~~s~~", "&lt;script&gt;", "# heading", "- item", "1. item", "\\|", "a\r\n\r\nb", "$x$",
    "\x1b[31mred\x1b[0m", "\x1b]0;title\x07", "\u202egnp.exe", "\u2028line", "\ud800", "\x9b2J", "",
)  # fmt: skip


@pytest.mark.parametrize("text", HOSTILE)
def test_no_markup_is_left(text):
    check(markdown(text))


@given(st.text(alphabet=st.one_of(st.sampled_from("<>[]()|`*_~#-+=1.\\&;$\n\r\t \x1b\u2028"), st.characters())))
def test_no_markup_is_left_of_any_text(text):
    check(markdown(text))
    assert not re.search("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\ud800-\udfff]", printable(text))
    printable(text).encode()


def check(shown: str) -> None:
    """No HTML, no link, no end of a cell or line, no start of a block, and every mark is escaped."""
    assert not re.search("[<>\\[\\]\n\r\x1b]", shown)
    assert not re.search(r"&(?!(lt|gt|amp|#91|#93);)", shown)
    bare = re.sub(r"\\[\\`*_|~$#.)+=-]", "x", shown)
    assert not re.search(r"[`*|~$]|(?<![^\W_])_|_(?![^\W_])", bare)
    assert not re.match(r"(#{1,6}|[-+=]+|\d+[.)])\s", shown)


def test_plain_names_stay_as_they_are():
    for text in ("train_2.jsonl line 3", "dpc_knn-ppe-k4-0.45", "-1.2", "-", "95 %", "a (b)", "Größe, 大きさ, می‌خواهم"):
        assert markdown(text) == printable(text) == text


def test_text_for_a_terminal():
    assert printable("a\n b\x1b[0m") == "a b\\x1b[0m"
    assert printable("a\n\tb\x1b", keep="\n\t") == "a\n\tb\\x1b"


def test_values_in_a_message():
    assert [brief(value) for value in (1, True, None, [[1]], {"a": 1}, "x\n")] == [
        "1", "true", "null", "a list", "an object", "'x\\n'",
    ]  # fmt: skip
    assert len(brief("x" * 999)) < 100
