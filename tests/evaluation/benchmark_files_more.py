"""Tiny data sets in their published layouts, continued: those that papers on compression report and need no judge."""

from __future__ import annotations

from pathlib import Path

from benchmark_writing import clip, dump, lines, parquet, picture, writes
from PIL import Image

OPTIONS = "Which?\nOptions: A: red, B: blue, C: green, D: dark"


@writes("mmstar")
def mmstar(folder: Path) -> None:
    row = {"index": 0, "question": OPTIONS, "image": picture(), "answer": "B", "category": "math", "l2_category": "x"}
    parquet(folder / "mmstar.parquet", [row])


@writes("realworldqa")
def realworldqa(folder: Path) -> None:
    asked = "Which way?\n\nA. Left\nB. Right\nPlease answer directly with only the letter of the correct option."
    rows = [{"question": asked, "answer": "B"}, {"question": "How many cars?", "answer": "3"}]
    parquet(folder / "data" / "test-00000.parquet", [{**row, "image": {"bytes": picture()}} for row in rows])


@writes("hallusionbench")
def hallusionbench(folder: Path) -> None:
    def row(figure: str, question: str, right: str, visual: str = "1") -> dict:
        name = f"./hallusion_bench/VS/chart/0_{figure}.png"
        common = {"category": "VS", "subcategory": "chart", "set_id": "0", "visual_input": visual}
        asked = {"figure_id": figure, "question_id": question, "question": f"Is it {question}?", "gt_answer": right}
        return {**common, **asked, "filename": name if visual != "0" else None, "gt_answer_details": ""}

    rows = [row("0", "0", "1"), row("0", "1", "0"), row("1", "0", "0", "2"), row("0", "9", "1", "0")]
    dump(folder / "HallusionBench.json", rows)
    for figure in "01":
        picture(folder / "hallusion_bench" / "VS" / "chart" / f"0_{figure}.png")


@writes("vqav2")
def vqav2(folder: Path) -> None:
    asked = {"question_id": 42000, "image_id": 42, "question": "What color is it?"}
    dump(folder / "v2_OpenEnded_mscoco_val2014_questions.json", {"questions": [asked]})
    said = ["blue"] * 4 + ["light blue"] * 6
    row = {"question_id": 42000, "image_id": 42, "answer_type": "other", "answers": [{"answer": one} for one in said]}
    dump(folder / "v2_mscoco_val2014_annotations.json", {"annotations": [row]})
    picture(folder / "val2014" / "COCO_val2014_000000000042.jpg")


@writes("lvbench")
def lvbench(folder: Path) -> None:
    asked = {
        "uid": "7",
        "question": "Who?\n(A) he\n(B) she\n(C) I\n(D) you",
        "answer": "B",
        "question_type": ["er", "ki"],
    }
    lines(folder / "video_info.meta.jsonl", [{"key": "abc", "type": "tv", "qa": [asked]}])
    clip(folder / "videos" / "abc.mp4")


@writes("tempcompass")
def tempcompass(folder: Path) -> None:
    row = {"question": "What happens?\nA. dunking a ball\nB. throwing it", "answer": "B. throwing it"}
    dump(folder / "questions" / "multi-choice.json", {"1021": {"action": [row], "speed": [row]}})
    clip(folder / "videos" / "1021.mp4")


@writes("mmmu_pro")
def mmmu_pro(folder: Path) -> None:
    options = str([f"choice {letter}" for letter in "abcdefghij"])
    row = {"id": "test_Art_1", "question": "What is in <image 1>?", "options": options, "answer": "J", "subject": "Art"}
    row |= {"image_1": {"bytes": picture()}, **{f"image_{number}": None for number in range(2, 8)}}
    parquet(folder / "standard (10 options)" / "test-00000.parquet", [row])
    whole = {"id": "test_Art_1", "image": {"bytes": picture()}, "options": options, "answer": "J", "subject": "Art"}
    parquet(folder / "vision" / "test-00000.parquet", [whole])


@writes("seedbench_2_plus")
def seedbench_2_plus(folder: Path) -> None:
    row = {"question_id": "3", "question": "Where?", "answer": "C", "question_image_type": "map"}
    row |= {"image": {"bytes": picture()}, **{f"choice_{letter}": letter.lower() for letter in "ABCD"}}
    parquet(folder / "data" / "test-00000.parquet", [row])


def _refcoco(folder: Path) -> None:
    row = {"question_id": "1", "bbox": [2.0, 4.0, 4.0, 8.0], "answer": ["left dog", "the dog"]}
    parquet(folder / "data" / "val-00000-of-1.parquet", [{**row, "image": {"bytes": picture()}}])


for name in ("refcoco", "refcoco_plus", "refcocog"):
    writes(name)(_refcoco)


@writes("screenspot_v2")
def screenspot_v2(folder: Path) -> None:
    row = {"img_filename": "a.png", "bbox": [2, 4, 4, 8], "instruction": "close it", "data_type": "icon"}
    dump(folder / "screenspot_web_v2.json", [row])
    picture(folder / "screenspotv2_image" / "a.png")


@writes("screenspot_pro")
def screenspot_pro(folder: Path) -> None:
    row = {"img_filename": "x/a.png", "bbox": [2, 4, 6, 12], "instruction": "save", "ui_type": "text"}
    dump(folder / "annotations" / "x.json", [row])
    picture(folder / "images" / "x" / "a.png")


@writes("mathvista")
def mathvista(folder: Path) -> None:
    common = {"unit": None, "choices": None, "precision": None, "metadata": {"task": "figure question answering"}}
    rows = [
        {"question": "Which is it?", "choices": ["3/11", "8/11"], "answer": "8/11", "question_type": "multi_choice",
         "answer_type": "text"},
        {"question": "How many?", "unit": "cm", "answer": "14", "question_type": "free_form", "answer_type": "integer"},
        {"question": "What share?", "answer": "0.6", "question_type": "free_form", "answer_type": "float",
         "precision": 1.0},
        {"question": "Between?", "answer": "[2007, 2008]", "question_type": "free_form", "answer_type": "list"},
    ]  # fmt: skip
    rows = [
        {"pid": str(number), **common, **row, "decoded_image": {"bytes": picture()}} for number, row in enumerate(rows)
    ]
    parquet(folder / "data" / "testmini-00000.parquet", rows)


@writes("charxiv")
def charxiv(folder: Path) -> None:
    asked = [
        ("Which curve?", "(b), Ours", 1),
        ("What trend?", "rising", 2),
        ("At 10?", "0.01", 3),
        ("How far?", "1.50", 4),
    ]
    rows = [
        {"image": {"bytes": picture()}, "figure_path": f"images/{number}.jpg", "reasoning_q": question,
         "reasoning_a": answer, "reasoning_a_type": kind, "reasoning_q_source": 1 + number % 2}
        for number, (question, answer, kind) in enumerate(asked)
    ]  # fmt: skip
    parquet(folder / "val.parquet", rows)


@writes("ocrbench_v2")
def ocrbench_v2(folder: Path) -> None:
    """Questions of three kinds in each language; fields that a kind does not need are empty, as published."""
    empty = {"dataset_name": "x", "eval": "None", "bbox": None, "bbox_list": None, "content": None}
    asked = [
        {"type": "text recognition en", "question": "What is written? ", "answers": ["STOP", "stop it"]},
        {"type": "text spotting en", "question": "Where are words?", "answers": [], "content": ["one", "two"],
         "bbox_list": [[0, 0, 100, 0, 100, 50, 0, 50], [200, 0, 300, 0, 300, 50, 200, 50]]},
        {"type": "text grounding en", "question": "Where is it?", "answers": ["10", "20", "30", "40"]},
        {"type": "cognition VQA cn", "question": "店名？", "answers": ["北京饭店"]},
        {"type": "text translation cn", "question": "翻译", "answers": [""]},
        {"type": "full-page OCR cn", "question": "文字？", "answers": ["今天天气"]},
    ]  # fmt: skip
    rows = [{"id": number, **empty, **row, "image": {"bytes": picture()}} for number, row in enumerate(asked)]
    parquet(folder / "data" / "test-00000-of-00001.parquet", rows)


@writes("olmocr_bench")
def olmocr_bench(folder: Path) -> None:
    """Tests of two one-page documents; the only test in arxiv_math.jsonl is about a formula."""
    data = folder / "bench_data"
    (data / "pdfs" / "tables").mkdir(parents=True)
    for name, shade in (("a.pdf", 40), ("tables/b.pdf", 200)):
        Image.new("RGB", (144, 72), (shade, 0, 160)).save(data / "pdfs" / name)
    common = {"page": 1, "max_diffs": 0, "checked": "verified"}
    lines(data / "arxiv_math.jsonl", [{**common, "pdf": "tables/b.pdf", "id": "m", "type": "math", "math": "x^2"}])
    rows = [{"type": "present", "text": "The fox"}, {"type": "absent", "text": "page 7", "last_n": 20}]
    rows = [{**common, "pdf": "a.pdf", "id": row["type"], **row} for row in rows]
    lines(data / "headers_footers.jsonl", rows)
    table = {**common, "pdf": "tables/b.pdf", "id": "t", "type": "table", "cell": "3", "left": "Sum"}
    lines(data / "table_tests.jsonl", [table])


@writes("mmlongbench_doc")
def mmlongbench_doc(folder: Path) -> None:
    """A document of three pages of 144 x 72 points, which differ in colour."""
    rows = [
        ("How many?", "12", "Int", "[2]"), ("What share?", "45%", "Float", "[1, 3]"),
        ("Who wrote it?", "Not answerable", "None", "[]"), ("Which?", "['red', 'dark blue']", "List", "[3, 3]"),
    ]  # fmt: skip
    named = ("question", "answer", "answer_format", "evidence_pages")
    dump(
        folder / "data" / "samples.json",
        [{"doc_id": "a.pdf", "doc_type": "x", **dict(zip(named, row))} for row in rows],
    )
    pages = [Image.new("RGB", (144, 72), (80 * number, 0, 160)) for number in range(3)]
    (folder / "data" / "documents").mkdir()
    pages[0].save(folder / "data" / "documents" / "a.pdf", save_all=True, append_images=pages[1:])
