"""Documents, charts and mathematics: prompts, scores on hand-made cases, pages of PDF files."""

from __future__ import annotations

import os
import signal
import threading
from copy import copy

import pytest
from benchmark_writing import write_all
from tolerances import near

from ppe_npu.errors import InputError
from ppe_npu.evaluation import protocols
from ppe_npu.evaluation.benchmarks import pdf
from ppe_npu.evaluation.benchmarks.mmlongbench import MMLongBenchDoc
from ppe_npu.evaluation.benchmarks.pdf import num_pages, page_images
from ppe_npu.evaluation.metrics import chart_number, chart_text, document_score, mathvista_answer

LETTER = "Answer with the option's letter from the given choices directly."
SHORT = "\nAnswer with a single word or phrase. If the answer is not in the document, answer 'Not answerable'."


@pytest.mark.parametrize(
    ("name", "number", "prompt", "truth", "kind"),
    [
        ("mathvista", 0, f"Which is it?\nA. 3/11\nB. 8/11\n{LETTER}", "8/11", "figure question answering"),
        ("mathvista", 1, "How many? (Unit: cm)\nAnswer the question using a single integer number.", "14", None),
        (
            "mathvista", 2,
            "What share?\nAnswer the question using a single floating-point number with one decimal place.", "0.6",
            None,
        ),
        ("mathvista", 3, "Between?\nAnswer the question using a Python list.", "[2007, 2008]", None),
        ("charxiv_reasoning", 2, None, "0.01", "number-in-chart"),
        (
            "charxiv_reasoning", 3, "How far?\n    * Your final answer must be a number with 2 decimal places.", "1.50",
            "number-in-general",
        ),
        ("mmlongbench_doc", 0, f"How many?{SHORT}", "12", "single-page"),
        ("mmlongbench_doc", 1, f"What share?{SHORT}", "45%", "cross-page"),
        ("mmlongbench_doc_evidence", 2, f"Who wrote it?{SHORT}", "Not answerable", "unanswerable"),
    ],
)  # fmt: skip
def test_prompt_truth_and_type(load, name, number, prompt, truth, kind):
    sample = load(name)[number]
    assert sample["GT"] == truth
    assert prompt is None or sample["prompt"] == prompt
    assert kind is None or sample["type"] == kind


@pytest.mark.parametrize(
    ("answer", "truth", "form", "score"),
    [
        ("12", "12", "Int", 1), ("There are 12 of them", "12", "Int", 1), ("12.9", "12", "Int", 1),
        ("1,200", "1200", "Int", 1),
        ("none", "12", "Int", 0), (400 * "9", "12", "Int", 0), ("13", "12", "Int", 0),
        ("45%", "45%", "Float", 1), ("0.45", "45%", "Float", 1), ("45.4", "45%", "Float", 1), ("46", "45%", "Float", 0),
        ("4500", "45%", "Float", 1), ("", "45%", "Float", 0),
        ("Red", "red (dark)", "Str", 1), ("rde", "red", "Str", 0), ("darkblue", "dark blue", "Str", 1 - 1 / 9),
        ("https://a.org/b", "https://a.org/c", "Str", 0), ("2020-01", "2020-01", "Str", 1),
        ("2020-02", "2020-01", "Str", 0),
        ("page 3", "page 4", "Str", 0), ("5 p.m.", "5 p.m.", "Str", 1), ("$5 million", "5", "Str", 1),
        ("me@a.org", "me@b.org", "Str", 0), ("", "red", "Str", 0), ("", "", "Str", 1),
        ("['dark blue', 'red']", "['red', 'dark blue']", "List", 1), ("['red']", "['red', 'dark blue']", "List", 0),
        ("['darkblue', 'red']", "['red', 'dark blue']", "List", 1 - 1 / 9), ("red", "['red']", "List", 1),
        ("[1, 2]", "['2', '1']", "List", 1), ("[1, 3]", "['2', '1']", "List", 0), ("[1, 2", "[1, 2]", "List", 0),
        ("None", "[]", "List", 1), ("None", "['none']", "List", 0),
        ("Not answerable.", "Not answerable", "None", 0), ("not answerable", "Not answerable", "None", 1),
        ("I cannot tell", "Not answerable", "None", 0),
    ],
)  # fmt: skip
def test_answers_about_documents(answer, truth, form, score):
    assert document_score(answer, truth, form) == near(score, 3)


def test_f1_counts_refusals(load):
    """Three of four have an answer: one of them is refused, one is wrong; the one without an answer is answered."""
    benchmark = load("mmlongbench_doc")
    answers = ["12", "not answerable", "me", "['blue']"]
    rows = [
        {"type": sample["type"], "GT": sample["GT"], "answer": said, "score": benchmark.score(said, sample)}
        for said, sample in zip(answers, benchmark)
    ]
    found = benchmark.metrics(rows)
    recall, precision = 1 / 3, 1 / 3
    assert found["acc"] == 0.25
    assert found["f1"] == near(2 * recall * precision / (recall + precision), 8)
    assert (found["single-page"], found["unanswerable"], found["cross-page"]) == (0.5, 0.0, 0.0)
    assert benchmark.metrics([]) == {"acc": 0.0, "f1": 0.0}


def test_pages_of_a_document(load):
    """All pages, or those that hold the answer, each once, at two pixels per point."""
    whole, evidence = load("mmlongbench_doc"), load("mmlongbench_doc_evidence")
    pages = whole[0]["image"]
    assert [(page.size, page.mode) for page in pages] == [((288, 144), "RGB")] * 3
    shades = [page.getpixel((100, 70))[0] for page in pages]
    assert [abs(shade - 80 * number) <= 4 for number, shade in enumerate(shades)] == [True] * 3  # JPEG, inside the PDF
    shown = [[page.getpixel((100, 70))[0] for page in sample["image"]] for sample in evidence]
    assert shown == [shades[1:2], shades[::2], [], shades[2:]]


def test_documents_that_cannot_be_shown(tmp_path, monkeypatch):
    root = write_all(tmp_path, "mmlongbench_doc")
    path = root / "mmlongbench_doc" / "data" / "documents" / "a.pdf"
    with pytest.raises(InputError, match="no page 4, only 3"):
        page_images(path, [4])
    monkeypatch.setattr("ppe_npu.evaluation.benchmarks.pdf.LARGEST", 40_000)
    with pytest.raises(InputError, match="page 1 has 41472 pixels"):
        page_images(path, [1])
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(InputError, match="cannot be read as PDF"):
        num_pages(path)
    path.unlink()
    with pytest.raises(InputError, match=r"missing below .*data/documents/a.pdf"):
        MMLongBenchDoc(root)


@pytest.mark.parametrize(
    ("answer", "options", "kind", "precision", "said"),
    [
        ("B", ["3/11", "8/11"], "text", None, "8/11"), ("(b) 8/11", ["3/11", "8/11"], "text", None, "8/11"),
        ("8/11", ["3/11", "8/11"], "text", None, "8/11"), ("It is 8/1", ["3/11", "8/11"], "text", None, "8/11"),
        ('The answer is "3/11".', ["3/11", "8/11"], "text", None, "3/11"),
        ("(Z)", ["3/11", "yes"], "text", None, "yes"),
        ("", ["3/11", "8/11"], "text", None, ""), ("A.", ["no", "yes"], "text", None, "no"),
        ("14", None, "integer", None, "14"), ("14.7", None, "integer", None, "14"),
        ("The number is 14.", None, "integer", None, "14"),
        ("1,400", None, "integer", None, "1400"), ("from 3 to 14 cm", None, "integer", None, "14"),
        ("fourteen", None, "integer", None, None), ("inf", None, "integer", None, None),
        ("nan", None, "float", 1, None),
        ("0.62", None, "float", 1.0, "0.6"), ("about 0.6, or six of ten", None, "float", 1.0, "0.6"),
        ("-.55", None, "float", 2, "-0.55"),
        ("1e400", None, "integer", None, None),
        ("10-5", None, "integer", None, "5"), ("it is -5", None, "integer", None, "-5"),
        ("x = \u22125", None, "integer", None, "-5"), ("10\u22125", None, "integer", None, "5"),
        ("It is [2007, 2008].", None, "list", None, "[2007, 2008]"), ("2007, 2008", None, "list", None, "2007, 2008"),
    ],
)  # fmt: skip
def test_answers_of_mathvista(answer, options, kind, precision, said):
    assert mathvista_answer(answer, options, kind, precision) == said


@pytest.mark.parametrize(
    ("answer", "truth", "score"),
    [
        ("0.01", "0.01", 1), ("10^-2", "0.01", 1), ("10^{-2}", "0.01", 1), ("1.5e3", "1500", 1), ("1,500", "1500", 1),
        ("1.5 × 10^3", "1500", 1), (r"$1.5\times 10^{3}$", "1500", 1), ("0.012", "0.01", 0), ("0.0100", "0.01", 1),
        ("The value at t=10 is 0.01.", "0.01", 1), ("0.01 at t=10", "0.01", 0), ("−3", "-3", 1), ("", "0.01", 0),
        ("one", "1", 0), ("1e99999", "1", 0), ("10^99999", "1", 0),
        ("5-10", "10", 1), ("10^" + 5000 * "9", "1", 0), (".5", "0.50", 1),
    ],
)  # fmt: skip
def test_numbers_of_charts_are_compared_by_value(answer, truth, score):
    assert chart_number(answer, truth) == score


@pytest.mark.parametrize(
    ("answer", "truth", "score"),
    [
        ("b", "(b)", 1), ("Ours, (b)", "(b), Ours", 1), ("Ours", "(b), Ours", 0), ("P-101", "P=101", 0),
        ("Rising.", "rising", 1),
        ("$R^2_t$", "R^2_t", 1), ('"abc."', "abc", 1), ("[a]", "a", 1), ("", "b", 0),
    ],
)  # fmt: skip
def test_texts_of_charts_are_compared_by_terms(answer, truth, score):
    assert chart_text(answer, truth) == score


def test_numbers_and_texts_of_charxiv_stand_apart(load):
    benchmark = load("charxiv_reasoning")
    said = ["ours, b", "falling", "1e-2", "1.5"]
    rows = [{"type": sample["type"], "score": benchmark.score(one, sample)} for one, sample in zip(said, benchmark)]
    found = benchmark.metrics(rows)
    assert (found["numbers"], found["texts"]) == (1.0, 0.5)
    assert found["text-in-general"] == 0.0


def test_what_charxiv_adds_goes_by_the_answer_and_under_lmms_eval_by_who_wrote_the_question(load):
    benchmark = copy(load("charxiv_reasoning"))
    benchmark.use(protocols.load("lmms-eval"))
    assert [sample["type"] for sample in benchmark] == [sample["type"] for sample in load("charxiv_reasoning")]
    assert "one of the options" in benchmark[3]["prompt"]  # the question about a number, as in the test above
    assert benchmark.edition == 2


def test_a_child_that_is_forked_amid_a_page_can_read_pages(tmp_path):
    """In the child, the thread that holds PDFium does not exist, so its lock would be held forever."""
    root = write_all(tmp_path, "mmlongbench_doc")
    path = root / "mmlongbench_doc" / "data" / "documents" / "a.pdf"
    inside, leave = threading.Event(), threading.Event()

    def hold():
        with pdf._ONE_AT_A_TIME:
            inside.set()
            leave.wait(20)

    holder, ends = threading.Thread(target=hold), threading.Timer(0.2, leave.set)
    holder.start()
    assert inside.wait(20)
    ends.start()
    child = os.fork()
    if child == 0:
        signal.alarm(20)  # its default action ends a child that waits
        os._exit(0 if num_pages(path) == 3 else 1)
    assert os.waitpid(child, 0)[1] == 0
    holder.join()
