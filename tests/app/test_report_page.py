"""`ppe-npu report --html` in a real browser: a column is sorted, a sample's difference is opened."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from browser import addresses, opened, wait
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "evaluation"))
from report_runs import write_run

from ppe_npu.evaluation import group_pictures
from ppe_npu.evaluation.report import write_report
from ppe_npu.files import write_text

pytestmark = pytest.mark.slow
RIGHT = [float(number % 3 != 0) for number in range(60)]  # of the second method: 20 of 60 wrong


@pytest.fixture(scope="module")
def chromium(tmp_path_factory):
    yield from opened(tmp_path_factory.mktemp("profile"))


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """A page of 60 samples, two methods, and one sample's picture with its groups."""
    folder = tmp_path_factory.mktemp("report")
    runs = []
    for name, method, scores in (("dense", (), [1.0] * 60), ("ppe 0.25", ("ppe", 0.25), RIGHT)):
        own = folder / "b" / name.replace(" ", "-")
        result = write_run(own, scores, *method)
        rows = [
            {"index": f"s{n}", "type": "kind", "prompt": f"Question {n}?", "GT": "cat", "score": score}
            | {"answer": "cat" if score else f"dog {n}"}
            for n, score in enumerate(scores)
        ]
        write_text(own / "predictions.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
        runs.append({**result, "name": name})
    for name in ("", "ppe 0.25"):
        path = group_pictures._path(folder / "b", name, "s0")
        path.parent.mkdir(parents=True)
        Image.radial_gradient("L").convert("RGB").save(path)
    group_pictures.list_names(folder / "b", ["ppe 0.25"])
    path, _ = write_report(runs, folder / "report.md", "Two methods", html=True)
    return path.with_suffix(".html")


@pytest.fixture
def page(chromium, report):
    chromium.get(report.as_uri())
    wait(
        lambda: chromium.find_element("css selector", "body").get_attribute("data-ready") == "yes", "the page's script"
    )
    return chromium


def column(table, number):
    return [
        row.find_elements("css selector", "td")[number].text for row in table.find_elements("css selector", "tbody tr")
    ]


def test_a_column_is_sorted_by_click_and_by_keyboard(page):
    from selenium.webdriver import Keys

    table = page.find_element("css selector", "section table.sortable")
    heads = table.find_elements("css selector", "th")
    number = next(n for n, head in enumerate(heads) if len(set(column(table, n))) > 1 and n > 0)

    def value(text):
        return float(text.split()[0].replace(",", ""))

    heads[number].click()
    down = column(table, number)
    assert heads[number].get_attribute("aria-sort") == "descending"
    assert [value(one) for one in down] == sorted(map(value, down), reverse=True)
    heads[number].send_keys(Keys.ENTER)
    assert column(table, number) == down[::-1]
    assert heads[number].get_attribute("aria-sort") == "ascending"
    heads[0].click()
    assert heads[number].get_attribute("aria-sort") is None


def test_a_samples_difference_is_opened_with_its_picture_and_both_answers(page):
    from selenium.webdriver.support.ui import Select

    section = page.find_element("css selector", "section")
    assert section.find_element("css selector", ".count").text == "20 of 60"
    samples = section.find_elements("css selector", ".sample")
    assert len(samples) == 20
    first = samples[0]
    for words in ("Question 0?", "expected: cat", "dense (1): cat", "ppe 0.25 (0): dog 0"):
        assert words in first.text
    pictures = first.find_elements("css selector", "img")
    assert [picture.get_attribute("alt") for picture in pictures] == ["picture", "ppe 0.25"]
    assert all(page.execute_script("return arguments[0].naturalWidth", picture) > 0 for picture in pictures)
    which = Select(section.find_element("css selector", ".which"))
    which.select_by_value("won")
    assert section.find_element("css selector", ".count").text == "0 of 60"
    which.select_by_value("lost")
    assert section.find_element("css selector", ".count").text == "20 of 60"
    Select(section.find_element("css selector", ".one")).select_by_index(1)
    assert section.find_element("css selector", ".count").text == "0 of 60"


def test_the_page_has_a_plot_and_names_and_asks_nobody(page, report):
    addresses(page)
    page.refresh()
    assert page.find_elements("css selector", ".plot svg circle")
    unnamed = "return [...document.querySelectorAll('select')].filter(e => !e.ariaLabel).length"
    assert page.execute_script(unnamed) == 0
    assert {one.partition(":")[0] for one in addresses(page)} <= {"file", "data"}


WORDS = {
    "letters": ("Answer with the option's letter. ", "A"),
    "pages": ("What stands on this page? ", "<td>O'Brien</td> & 1 "),
    "chinese": ("图中有什么？", "桌子上有一只猫。"),
}


@pytest.fixture(params=WORDS)
def large(request, tmp_path):
    """A page of 10,000 samples that four methods answered, of one letter or of far more than there is room for."""
    question, word = WORDS[request.param]
    runs = []
    for number in range(4):
        method = ("ppe", round(0.1 + 0.1 * number, 1)) if number else ()
        scores = [float((sample + number) % 3 != 0) for sample in range(10_000)]
        result = write_run(tmp_path / "b" / str(number), scores, *method)
        answer = word if request.param == "letters" else word * 100
        rows = [
            {"index": f"s{n}", "type": "kind", "prompt": f"{n}: {question * 20}", "GT": "cat", "score": score}
            | {"answer": f"{number if score else n} {answer}"}
            for n, score in enumerate(scores)
        ]
        write_text(tmp_path / "b" / str(number) / "predictions.jsonl", "".join(json.dumps(r) + "\n" for r in rows))
        runs.append({**result, "name": f"method {number}"})
    write_report(runs, tmp_path / "report.md", "Large", html=True)
    return request.param, tmp_path / "report.html"


def test_ten_thousand_samples_open_and_are_all_there(chromium, large, capsys):
    """How long that takes is printed: from the first request until the page's script and the first paint are done."""
    kind, path = large
    assert path.stat().st_size < 20_000_000
    times = []
    for _ in range(5):
        chromium.get("about:blank")
        chromium.get(path.as_uri())
        times.append(chromium.execute_async_script(OPENED))
    times.sort()
    size = path.stat().st_size / 1e6
    with capsys.disabled():
        print(f"\n{kind}: {size:.1f} MB opened in {times[2]:.2f} s, the median of {[f'{time:.2f}' for time in times]}")
    section = chromium.find_element("css selector", "section")
    count = section.find_element("css selector", ".count").text
    assert count in ("10000 of 10000", "6667 of 10000")
    section.find_element("css selector", ".more").click()
    assert len(section.find_elements("css selector", ".sample")) == 50


# Calls back with the seconds from the navigation's start until what the script made has been painted.
OPENED = """
const done = arguments[arguments.length - 1];
const look = () => document.body.dataset.ready === "yes"
  ? requestAnimationFrame(() => setTimeout(() => done(performance.now() / 1000))) : setTimeout(look, 1);
look();
"""
