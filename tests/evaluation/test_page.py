"""The report as one HTML page: what it holds, that nothing in it is taken for markup, and how large it grows."""

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
from ppe_npu.evaluation.group_pictures import list_names
from ppe_npu.evaluation.page import samples
from ppe_npu.evaluation.report import write_report
from ppe_npu.files import write_text

EVIL = "</script><script>document.title='taken'</script><img src=x onerror=alert(1)>"
CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)


def run_of(folder, name, answers, scores, index="s{}", **more):
    """A run's folder with answers that a test chooses."""
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


def test_pictures_and_groups_stand_beside_the_answers(tmp_path):
    from PIL import Image

    from ppe_npu.evaluation import group_pictures

    runs = [
        run_of(tmp_path / "dense", "dense", ["cat"], [1.0]),
        run_of(tmp_path / "ppe", "ppe 0.25", ["dog"], [0.0]),
    ]
    for name in ("", "ppe 0.25"):
        path = group_pictures._path(tmp_path, name, "s0")
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


def test_a_damaged_line_is_named(tmp_path):
    run = run_of(tmp_path / "dense", "dense", ["cat"], [1.0])
    write_text(tmp_path / "dense" / "predictions.jsonl", '{"index": 1}\n')
    with pytest.raises(InputError, match=r"holds a line that has no answer, score, GT \(line 1\)"):
        samples([run], [0])


def test_ten_thousand_samples_are_below_20_mb(tmp_path):
    page = page_of(tmp_path, count=10_000)
    assert page.stat().st_size < 20_000_000
    assert data_of(page)[0]["left_out"] == 0


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
    """Without a browser: a document of a few elements, see page_in_node.js."""
    command = ["node", Path(__file__).with_name("page_in_node.js"), page]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["ready"], found["names"]) == ("yes", ["dense", "ppe <b>"])
    assert found["drawn"] > 10  # axes, labels, a line and a dot for each method
    assert found["down"] == ["1,000", "10.0", "9.5", "-"]
    assert found["up"] == ["9.5", "10.0", "1,000", "-"]  # what is no number stays below
    assert (found["count"], found["shown"], found["more"]) == ("40 of 80", 25, 40)
    assert EVIL in found["first"]
    assert (found["won"], found["lost"], found["itself"]) == ("0 of 80", "40 of 80", "0 of 80")


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not there: apt-get install chromium")
def test_a_browser_opens_ten_thousand_samples_and_clicks(tmp_path):
    """The page is opened with a few lines that click behind its own, and what stands there afterwards is read."""
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
    assert '<th data-order="down"' in done.stdout
    assert re.search(r'id="told">0 of 10000\|Title ', done.stdout)  # a method beside itself differs nowhere
    assert "<svg" in done.stdout
