"""The report as one HTML page: what it contains, that nothing in it is taken for markup, and how large it grows."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import time
from pathlib import Path

import pytest
from report_runs import write_run

from ppe_npu.errors import InputError
from ppe_npu.evaluation.benchmarks.dataset import Sample
from ppe_npu.evaluation.group_pictures import list_names
from ppe_npu.evaluation.page import samples
from ppe_npu.evaluation.report import write_report
from ppe_npu.files import write_text

EVIL = "</script><script>document.title='taken'</script><img src=x onerror=alert(1)>"
CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)


def run_of(folder, name, answers, scores, index="s{}", **more):
    """Writes a run's folder with answers that a test chooses; returns its result."""
    result = write_run(folder, scores, *(("ppe", 0.25) if name != "dense" else ()), **more)
    rows = [
        {
            "index": index.format(n),
            "type": "kind",
            "prompt": f"Question {n}? {EVIL}",
            "GT": "cat",
            "answer": a,
            "score": s,
        }
        for n, (a, s) in enumerate(zip(answers, scores))
    ]
    write_text(folder / "predictions.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    return {**result, "name": name}


def page_of(tmp_path, count=4):
    right = [float(n % 2) for n in range(count)]
    dense = run_of(tmp_path / "b" / "dense", "dense", ["cat"] * count, [1.0] * count)
    other = run_of(
        tmp_path / "b" / "ppe", "ppe <b>", [f"{EVIL} {n}" if not r else "cat" for n, r in enumerate(right)], right
    )
    path, _ = write_report([dense, other], tmp_path / "report.md", f"Title {EVIL}", html=True)
    return path.with_suffix(".html")


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """A page of 80 samples, every other of which the second method gets wrong."""
    return page_of(tmp_path_factory.mktemp("page"), count=80)


def data_of(page):
    return json.loads(re.search(r'<script id="data" type="application/json">(.*?)</script>', page.read_text())[1])


def test_nothing_of_a_model_or_a_user_is_markup(page):
    text = page.read_text()
    assert text.count("<script") == 2  # the data's and the page's own
    assert (
        "onerror=alert" not in re.sub(r'<script id="data".*?</script>', "", text.replace("&lt;", "")) or "&gt;" in text
    )
    assert "<img src=x" not in text
    assert "<b>" not in re.sub(r"<b class=\"count\">", "", text)
    assert data_of(page)[0]["rows"][0]["answers"][1] == f"{EVIL} 0"  # and it is there, as text


def test_a_page_needs_no_network(page):
    text = page.read_text()
    assert "default-src 'none'" in text
    own = text.replace("http://www.w3.org/2000/svg", "").partition('<script id="data"')
    assert not re.findall(
        r"https?://|<link|<[a-z]+[^>]*\ssrc=|@import|url\(", own[0] + own[2].partition("</script>")[2]
    )


def test_samples_on_which_methods_agree_are_counted_and_left_out(page):
    found = data_of(page)[0]
    assert found["names"] == ["dense", "ppe <b>"]
    assert (found["total"], [row["index"] for row in found["rows"]]) == (80, [f"s{n}" for n in range(0, 80, 2)])
    assert found["rows"][0]["scores"] == [1.0, 0.0]


@pytest.mark.parametrize("index", ["s0", "folder/" * 40 + "0", "bell\a\n0"], ids=["short", "long", "control"])
def test_pictures_and_groups_stand_beside_the_answers(tmp_path, index):
    from PIL import Image

    from ppe_npu.evaluation import group_pictures

    runs = [
        run_of(tmp_path / "dense", "dense", ["cat"], [1.0], index),
        run_of(tmp_path / "ppe", "ppe 0.25", ["dog"], [0.0], index),
    ]
    for name in ("", "ppe 0.25"):
        path = group_pictures._path(tmp_path, name, index)
        path.parent.mkdir(parents=True)
        Image.new("RGB", (300, 200)).save(path)
    list_names(tmp_path, ["dense", "ppe 0.25"])
    budget = [10**6]
    row = samples(runs, budget)["rows"][0]
    assert row["picture"].startswith("data:image/jpeg;base64,")
    assert list(row["groups"]) == ["ppe 0.25"]
    assert budget[0] == 10**6 - len(row["picture"]) - len(row["groups"]["ppe 0.25"])
    assert "picture" not in samples(runs, [10])["rows"][0]  # no room left
    path.write_bytes(path.read_bytes()[:99])
    row = samples(runs, [10**6])["rows"][0]
    assert ("picture" in row, row.get("groups")) == (True, None), "one that was damaged since is left out"


def test_samples_on_which_scores_differ_are_drawn_evenly_and_come_first_on_the_page(tmp_path):
    from PIL import Image

    from ppe_npu.evaluation import group_pictures

    class Mine:
        """A fifth of the samples has no index, two videos, or a path that is a number; s99's picture fails to load."""

        def __len__(self):
            return 100

        def __getitem__(self, number):
            if number % 5 == 0:
                return [{}, {"index": f"s{number}", "prompt": "", "video_path": ["a", "b"]},
                        {"index": f"s{number}", "prompt": "", "image_path": 1}][number % 3]  # fmt: skip
            fields = {"index": f"s{number}", "prompt": "?"}
            if number == 99:
                return Sample(fields, image=lambda: {}["picture"])
            return {**fields, "image": Image.new("RGB", (30, 20))}

    right = [float(n < 20) for n in range(100)]
    runs = [
        run_of(tmp_path / "dense", "dense", ["cat"] * 100, [1.0] * 100),
        run_of(tmp_path / "ppe", "ppe 0.25", ["cat" if one and n else "dog" for n, one in enumerate(right)], right),
    ]
    folders = [Path(run["folder"]) for run in runs]
    found = group_pictures.differing_samples(Mine(), folders, [{"index": "s21"}], most=9)
    numbers = [int(sample["index"][1:]) for sample in found]
    assert len(numbers) == 9
    assert all(number > 21 and number % 5 for number in numbers)
    assert max(b - a for a, b in zip([20, *numbers], [*numbers, 100])) < 16
    assert len(group_pictures.differing_samples(Mine(), folders, [], most=99)) == 63  # all of 20 to 99 with one picture
    assert group_pictures.differing_samples(Mine(), folders[:1] * 2, []) == []
    assert group_pictures.draw(tmp_path, "", None, found) == 9
    list_names(tmp_path, [])
    rows = samples(runs, [10**6])["rows"]
    assert [row["index"] for row in rows[:9]] == [f"s{number}" for number in numbers]
    assert ["picture" in row for row in rows] == [True] * 9 + [False] * 72  # s0 differs in its answer alone


def test_a_damaged_line_is_named(tmp_path):
    run = run_of(tmp_path / "dense", "dense", ["cat"], [1.0])
    write_text(tmp_path / "dense" / "predictions.jsonl", '{"index": 1}\n')
    with pytest.raises(InputError, match=r"line 1 has no answer, score, GT:"):
        samples([run], [0])


@pytest.mark.ci
def test_ten_thousand_samples_are_below_20_mb(tmp_path):
    page = page_of(tmp_path, count=10_000)
    assert page.stat().st_size < 20_000_000
    assert data_of(page)[0]["left_out"] == 0


@pytest.mark.parametrize(
    "sign",
    ["word ", "漢字", "<td>'&", "\U0001f600", '\x1b"\n'],
    ids=["words", "chinese", "markup", "pictures", "control"],
)
def test_samples_are_as_large_as_was_measured_and_all_there_in_whatever_letters(tmp_path, sign):
    """Long answers of four methods exceed the limit: they are cut shorter, and no sample is left out."""
    from ppe_npu.evaluation.page.fitting import fitted

    answers = [f"{number} {sign * 300}" for number in range(60)]
    runs = [run_of(tmp_path / name, name, answers, [float(number % 2)] * 60) for number, name in enumerate("abcd")]
    text = fitted([samples(runs, [0])], 150_000)
    found = json.loads(text)[0]
    assert (found["left_out"], len(found["rows"])) == (0, 60)
    assert len(text.encode()) < 150_000 + 100  # the rows are measured; names and counts come on top
    assert "<" not in text
    assert text.isprintable()
    assert found["rows"][7]["answers"][0].startswith("7 ")
    assert found["rows"][7]["answers"][0].endswith("…")


def test_room_is_shared_and_what_a_small_benchmark_leaves_is_the_others():
    from ppe_npu.evaluation.page.fitting import fitted

    def benchmark(count):
        rows = [{"prompt": "p" * 10, "truth": "", "answers": ["a", "b"]} for _ in range(count)]
        return {"names": ["x", "y"], "total": count, "rows": rows}

    one = len(json.dumps(benchmark(1)["rows"][0], separators=(",", ":"))) + 1
    found = json.loads(fitted([benchmark(100), benchmark(2), benchmark(100)], 12 * one))
    assert [len(part["rows"]) for part in found] == [5, 2, 5]
    assert [part["left_out"] for part in found] == [95, 0, 95]


def test_the_page_has_all_tables_of_the_markdown_and_names_their_protocol(tmp_path):
    kinds = [f"kind {number}" for number in range(12)]
    run = write_run(tmp_path / "b" / "dense", [1.0] * 24, kinds=kinds)
    run["settings"] |= {"protocol": {"name": "qwen"}}
    del run["folder"]  # the tables alone
    write_report([run], tmp_path / "report.md", "All", html=True, papers=["pvc"])
    text = (tmp_path / "report.html").read_text()
    heads = re.findall("<thead><tr><th>(.*?)</th>", text)
    assert heads[:4] == [
        f"{what}, under protocol qwen" for what in ("method", "method", "accuracy, % by type", "method")
    ]
    assert "Published numbers, not ours" in text
    assert "73.8" in text  # PVC's MVBench
    assert "Source: headline table of the paper" in text
    assert "24 samples, score: accuracy" in text
    markdown = (tmp_path / "report.md").read_text()
    assert heads == re.findall(r"^\| ([^|]*?) \|.*\n\| ---", markdown, re.M)


def test_a_page_that_would_grow_too_large_says_what_it_leaves_out(tmp_path, monkeypatch):
    from ppe_npu.evaluation import page

    monkeypatch.setattr(page, "LIMIT", 1000)
    assert data_of(page_of(tmp_path, count=100))[0]["left_out"] > 40


def test_report_writes_the_page_when_asked(run, tmp_path):
    run_of(tmp_path / "b" / "dense", "dense", ["cat"], [1.0])
    code, out, err = run("report", tmp_path, "--html", "--published", "ppe")
    assert code == 0, err
    assert (tmp_path / "report.html").is_file()
    assert "report.html" in out
    assert "Published numbers, not ours" in (tmp_path / "report.md").read_text()
    code, _, err = run("report", tmp_path, "--published", "x")
    assert code == 2
    assert "--published x" in err


@pytest.mark.skipif(shutil.which("node") is None, reason="no node to run the page's script with")
def test_the_pages_own_script_sorts_plots_and_shows_differences(page):
    """Runs without a browser, in a document of a few elements: see page_in_node.js."""
    command = ["node", Path(__file__).with_name("page_in_node.js"), page]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["ready"], found["names"]) == ("yes", ["dense", "ppe <b>"])
    assert found["drawn"] > 100  # axes, labels, a line, a dot and a name for each of 41 methods
    size = {key: float(found["size"][key]) for key in ("width", "height")}
    assert all(float(word["y"]) < size["height"] for word in found["words"])
    names = [word for word in found["words"] if word["text"].startswith("steps+of+one")]
    assert len(names) == 40
    assert all(float(word["x"]) + 7 * len(word["text"]) < size["width"] for word in names)  # 12 px letters are narrower
    assert found["down"] == ["1,000", "10.0", "9.5", "<1e-300", "-"]
    assert found["up"] == ["<1e-300", "9.5", "10.0", "1,000", "-"]  # values that are not numbers stay at the end
    assert (found["count"], found["shown"], found["more"]) == ("40 of 80", 25, 40)
    assert EVIL in found["first"]
    assert (found["won"], found["lost"], found["itself"]) == ("0 of 80", "40 of 80", "0 of 80")


@pytest.mark.skipif(shutil.which("node") is None, reason="no node to run the page's script with")
def test_answers_that_differ_behind_what_is_shown_of_them_are_counted(tmp_path):
    runs = [run_of(tmp_path / end, end, ["x" * 500 + end, "same", "y"], [1.0] * 3) for end in "ab"]
    rows = samples(runs, [0])["rows"]
    assert [row["alike"] for row in rows] == [[0, 1]]
    assert rows[0]["answers"][0] == rows[0]["answers"][1]
    path, _ = write_report(runs, tmp_path / "report.md", "Long", html=True)
    command = ["node", Path(__file__).with_name("page_in_node.js"), path.with_suffix(".html")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["count"] == "1 of 3"


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not there: apt-get install chromium")
def test_a_browser_opens_ten_thousand_samples_and_clicks(tmp_path):
    """Appends a script that clicks to the page's own, opens it, and reads the resulting document."""
    page = page_of(tmp_path, count=10_000)
    clicks = """<script>
    document.querySelectorAll("table.sortable")[1].tHead.rows[0].cells[1].click();
    document.querySelector(".more").click();
    const first = document.querySelector(".one"); first.value = 1; first.dispatchEvent(new Event("change"));
    const told = document.createElement("p"); told.id = "told";
    told.textContent = [document.querySelector(".count").textContent, document.title].join("|");
    document.body.append(told);
    </script></body>"""
    page.write_text(page.read_text().replace("</body>", clicks))
    started = time.monotonic()
    command = [CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", "--dump-dom", page.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    print(f"opened in {time.monotonic() - started:.1f} s, the browser's start included")
    assert 'data-ready="yes"' in done.stdout
    assert re.search('<th [^>]*data-order="down"', done.stdout)
    assert re.search(r'id="told">0 of 10000\|Title ', done.stdout)  # a method beside itself differs nowhere
    assert "<svg" in done.stdout
