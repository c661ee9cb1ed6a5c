"""Tiny data sets in the layout that each benchmark is published in: write[name](folder below the data root)."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import benchmark_files_more  # noqa: F401  its data sets are registered
from benchmark_writing import clip, copy, dump, folder_of, lines, parquet, picture, table, write, write_all, writes

from ppe_npu.evaluation.benchmarks import mvbench
from ppe_npu.evaluation.metrics import COGNITION, PERCEPTION

__all__ = [
    "copy",
    "dump",
    "folder_of",
    "parquet",
    "picture",
    "write",
    "write_all",
]  # beside the data sets


@writes("mmbench")
def mmbench(folder: Path) -> None:
    def row(index: int, question: str, options: list[str], answer: str, image: str, hint: str = "") -> dict:
        named = dict(zip("ABCD", [*options, "", "", ""]))
        rest = {"category": "identity" if index < 2 else "ocr", "l2-category": "coarse", "split": "dev", "source": "x"}
        return {"index": index, "question": question, "hint": hint, **named, "answer": answer, **rest, "image": image}

    first = base64.b64encode(picture()).decode()
    rows = [
        row(0, "What is it?", ["a red ball", "a cat", "a tree"], "B", first, hint="Look closely."),
        row(2, "Which word?", ["exit", "enter"], "A", "0"),  # its picture is that of row 0
        row(1_000_000, "What is it?", ["a cat", "a tree", "a red ball"], "A", "0"),  # a circular copy in the file
    ]
    table(folder / "MMBench_DEV_EN.tsv", rows, "\t")
    table(folder / "mmbench_dev_cn_20231003.tsv", [row(0, "图里是什么？", ["红球", "猫"], "B", first)], "\t")


@writes("scienceqa")
def scienceqa(folder: Path) -> None:
    common = {"hint": "", "image": None, "subject": "natural science"}
    problems = {
        "3": {
            **common,
            "question": "Which is a solid?",
            "choices": ["ice", "steam"],
            "answer": 0,
            "image": "image.png",
        },
        "7": {**common, "question": "Which is east?", "choices": ["x", "y", "z"], "answer": 2, "hint": "Use the map."},
        "9": {**common, "question": "Of the train split?", "choices": ["a", "b"], "answer": 0},
    }
    dump(folder / "problems.json", problems)
    dump(folder / "pid_splits.json", {"train": ["9"], "test": ["3", "7"]})
    picture(folder / "images" / "test" / "3" / "image.png")


@writes("textvqa")
def textvqa(folder: Path) -> None:
    answers = ["nokia"] * 6 + ["nokia phone"] * 2 + ["samsung", "unanswerable"]
    row = {"question": "what Brand is it?", "image_id": "ab12", "question_id": 34602, "answers": answers}
    dump(folder / "TextVQA_0.5.1_val.json", {"data": [row]})
    picture(folder / "train_images" / "ab12.jpg")


@writes("docvqa")
def docvqa(folder: Path) -> None:
    row = {"questionId": 49153, "question": "What is the ‘actual’ value?", "image": "documents/p_1.png"}
    dump(
        folder / "val_v1.0_withQT.json", {"data": [{**row, "answers": ["0.28", "Gebühr"], "question_types": ["table"]}]}
    )
    picture(folder / "documents" / "p_1.png")


@writes("infovqa")
def infovqa(folder: Path) -> None:
    row = {"questionId": 98313, "question": "Which app is named?", "image_local_name": "20471.jpeg"}
    more = {"answers": ["pinterest"], "answer_type": ["single span"]}
    dump(folder / "infographicsVQA_val_v1.0_withQT.json", {"data": [{**row, **more}]})
    picture(folder / "infographicsvqa_images" / "20471.jpeg")


@writes("ocrbench")
def ocrbench(folder: Path) -> None:
    def row(dataset: str, kind: str, answers: Any, number: int) -> dict:
        path = f"{dataset}/{number}.png"
        picture(folder / "OCRBench_Images" / path)
        question = "what is written in the image?"
        return {
            "dataset_name": dataset,
            "id": 5,
            "image_path": path,
            "question": question,
            "answers": answers,
            "type": kind,
        }

    rows = [
        row("IIIT5K", "Regular Text Recognition", "CENTRE", 1),
        row("docVQA", "Doc-oriented VQA", ["$ 12", "12 dollars"], 2),
        row("HME100k", "Handwritten Mathematical Expression Recognition", ["x ^ { 2 } + A"], 3),
    ]
    dump(folder / "OCRBench.json", rows)


@writes("chartqa")
def chartqa(folder: Path) -> None:
    dump(folder / "test" / "test_human.json", [{"imgname": "1.png", "query": "How many?", "label": "14"}])
    dump(folder / "test" / "test_augmented.json", [{"imgname": "1.png", "query": "Which year?", "label": "Italy"}])
    picture(folder / "test" / "png" / "1.png")


@writes("flickr30k")
def flickr30k(folder: Path) -> None:
    def row(number: int, split: str, *texts: str) -> dict:
        name = f"{number}.jpg"
        picture(folder / "flickr30k-images" / name)
        return {"filename": name, "imgid": number, "split": split, "sentences": [{"raw": text} for text in texts]}

    rows = [
        row(1, "test", "A man rides a horse.", "A man riding a horse on the beach."),
        row(2, "train", "Not asked."),
        row(3, "test", "Two dogs play.", "Dogs playing in the park."),
    ]
    dump(folder / "dataset_flickr30k.json", {"images": rows, "dataset": "flickr30k"})


@writes("gqa")
def gqa(folder: Path) -> None:
    row = {"question": "Is it overcast?", "imageId": "n161313", "answer": "no", "types": {"structural": "verify"}}
    dump(folder / "testdev_balanced_questions.json", {"201307251": row})
    picture(folder / "images" / "n161313.jpg")


@writes("vizwiz")
def vizwiz(folder: Path) -> None:
    answers = ["unanswerable"] * 4 + ["no"] * 2 + ["2 cans", "two cans", "2 cans.", "a can"]
    row = {"image": "VizWiz_val_00000000.jpg", "question": "can you tell me What this is?", "answer_type": "other"}
    rows = [{**row, "answers": [{"answer": answer, "answer_confidence": "yes"} for answer in answers], "answerable": 1}]
    dump(folder / "val.json", rows)
    picture(folder / "val" / "VizWiz_val_00000000.jpg")


@writes("pope")
def pope(folder: Path) -> None:
    def row(number: int, label: str) -> dict:
        return {"question_id": number, "image": "a.jpg", "text": "Is there a dog in the image?", "label": label}

    for split in ("random", "popular", "adversarial"):
        lines(folder / f"coco_pope_{split}.json", [row(1, "yes"), row(2, "no")])
    picture(folder / "val2014" / "a.jpg")


@writes("mme")
def mme(folder: Path) -> None:
    for task in (*PERCEPTION, *COGNITION):
        nested = task in ("artwork", "celebrity", "landmark", "posters", "scene")
        texts = folder / task / ("questions_answers_YN" if nested else "")
        texts.mkdir(parents=True)
        asked = "Is it {}? Please answer yes or no.\t{}\n"
        (texts / "0001.txt").write_text(asked.format("red", "Yes") + asked.format("blue", "No"), encoding="utf-8")
        picture(folder / task / ("images" if nested else "") / ("0001.jpg" if nested else "0001.png"))


@writes("ai2d")
def ai2d(folder: Path) -> None:
    def row(question: str, answer: str, shade: int) -> dict:
        image = {"bytes": picture(shade=shade), "path": None}
        return {"question": question, "options": ["larva", "adult", "egg", "pupa"], "answer": answer, "image": image}

    parquet(folder / "data" / "test-00000-of-00001.parquet", [row("Which stage?", "1", 1), row("First?", "2", 2)])


@writes("mmmu")
def mmmu(folder: Path) -> None:
    def row(identity: str, question: str, kind: str, options: str, answer: str, images: int) -> dict:
        pictures = {
            f"image_{n}": {"bytes": picture(shade=n), "path": f"{n}.png"} if n <= images else None for n in range(1, 8)
        }
        return {
            "id": identity,
            "question": question,
            "question_type": kind,
            "options": options,
            "answer": answer,
            **pictures,
        }

    choice = row("validation_Art_Theory_1", "Compare <image 2> and <image 1>; <image 2> is", "multiple-choice",
                 "['older than <image 1>', 'newer', \"Monet's\"]", "B", 2)  # fmt: skip
    asked = row("validation_Math_3", "What is the area in <image 1>?", "open", "[]", "['3.5', 'seven halves']", 1)
    parquet(folder / "Art_Theory" / "validation-00000-of-00001.parquet", [choice])
    parquet(folder / "Math" / "validation-00000-of-00001.parquet", [asked])


@writes("seedbench")
def seedbench(folder: Path) -> None:
    def row(number: Any, kind: str, dimension: int, data: str, answer: str, **more: Any) -> dict:
        choices = {f"choice_{letter}": word for letter, word in zip("abcd", ("One", "Two", "Three", "Four"))}
        rest = {"question": "How many?", "question_id": number, "question_type_id": dimension}
        return {"answer": answer, **choices, "data_id": data, "data_type": kind, **rest, **more}

    questions = [
        row("101669", "image", 5, "1454426_2591111986", "A"),
        row("v1738", "video", 10, "94328.webm", "B"),
        row("v1962", "video", 11, "P03/P03_24.MP4", "C", segment=[1.0, 3.0]),
        row("v4397", "video", 12, "P06/cam01/P06_cereals.avi", "D", segment=[15, 45]),
    ]
    kinds = {"Instances Counting": 5, "Action Recognition": 10, "Action Prediction": 11, "Procedure Understanding": 12}
    dump(folder / "SEED-Bench.json", {"questions": questions, "question_type": kinds})
    picture(folder / "SEED-Bench-image" / "1454426_2591111986")
    for path in ("ssv2/94328.webm", "epic_kitchens/P03/P03_24.MP4", "breakfast/P06/cam01/P06_cereals.avi"):
        clip(folder / path)


@writes("videomme")
def videomme(folder: Path) -> None:
    def row(number: int, video: str, duration: str, answer: str) -> dict:
        options = ["A. Apples.", "B. Candles.", "C. Berries.", "D. All the same."]
        rest = {"duration": duration, "domain": "Knowledge", "sub_category": "Geography", "task_type": "OCR Problems"}
        asked = {"question": "Which is shown?", "options": options, "answer": answer, "question_id": f"00{number}-1"}
        return {"video_id": f"00{number}", "videoID": video, "url": "", **rest, **asked}

    rows = [row(1, "fFjv93ACGo8", "short", "C"), row(2, "N1cdUjctpG8", "long", "A")]
    parquet(folder / "videomme" / "test-00000-of-00001.parquet", rows, row_group_size=10)
    clip(folder / "data" / "fFjv93ACGo8.mp4")
    clip(folder / "data" / "N1cdUjctpG8.mkv")
    (folder / "subtitle").mkdir()
    first = '1\n00:00:00,000 --> 00:00:01,500\n<font color="white" size=".72c">It\'s a\nberry</font>\n\n'
    second = "2\n00:00:02,000 --> 00:00:03,000\nCafé\n"
    (folder / "subtitle" / "fFjv93ACGo8.srt").write_text(first + second, encoding="utf-8")


@writes("nextqa")
def nextqa(folder: Path) -> None:
    size = {"video": "4010069381", "frame_count": 369, "width": 640, "height": 480}
    options = {f"a{n}": word for n, word in enumerate(("sing on stage", "sleep", "cook dinner", "run ", "swim"))}
    table(folder / "MC" / "test.csv", [
        {**size, "question": "what are they doing ", "answer": 2, "qid": 9, "type": "TC", **options},
        {**size, "question": "why does she walk away", "answer": 0, "qid": 3, "type": "CW", **options},
    ], ",")  # fmt: skip
    table(folder / "OE" / "test.csv", [
        {**size, "question": "how many people", "answer": "two", "qid": 1, "type": "DC"},
        {**size, "question": "what does the dog do", "answer": "run to the cat", "qid": 2, "type": "TP"},
    ], ",")  # fmt: skip
    dump(folder / "OE" / "add_reference_answer_test.json", {"4010069381": {"2": "chase the cat"}})
    dump(folder / "map_vid_vidorID.json", {"4010069381": "1164/4010069381"})
    clip(folder / "NExTVideo" / "1164" / "4010069381.mp4")


@writes("mvbench")
def mvbench_data(folder: Path) -> None:
    for task, place in mvbench.TASKS.items():
        frames = task == "episodic_reasoning"
        name = "castle_s01e01" if frames else f"{task}.{'webm' if task == 'action_antonym' else 'mp4'}"
        row = {"video": name, "question": "What happens?", "candidates": ["It moves.", "It stays.", "Both"]}
        bounds = {"start": 1.0, "end": 3.0}  # ignored for whole videos
        dump(folder / "json" / f"{task}.json", [{**row, "answer": "It stays.", **bounds}])
        if frames:
            for number in range(1, 13):
                picture(folder / "video" / place / name / f"{number:05d}.jpg", shade=20 * number)
        else:
            clip(folder / "video" / place / name)


@writes("mlvu")
def mlvu(folder: Path) -> None:
    for number, task in enumerate(("plotQA", "needle", "ego", "count", "order", "anomaly_reco", "topic_reasoning"), 1):
        row = {"video": "v.mp4", "duration": 480.0, "question": "Which?", "question_type": task}
        dump(folder / "json" / f"{number}_{task}.json", [{**row, "candidates": ["Red", "Blue"], "answer": "Blue"}])
        clip(folder / "video" / f"{number}_{task}" / "v.mp4")


@writes("longvideobench")
def longvideobench(folder: Path) -> None:
    row = {"id": "86Cx_0", "video_path": "86Cx.mp4", "subtitle_path": "86Cx_en.json", "question": "Who speaks?"}
    more = {"candidates": ["He", "She"], "correct_choice": 1, "duration_group": 15, "duration": 4.0}
    dump(
        folder / "lvb_val.json", [{**row, **more, "starting_timestamp_for_subtitles": 10.0, "question_category": "E2O"}]
    )
    said = [
        {"timestamp": [10.2, 11.8], "text": "Hello there"},  # second 1 lies in it
        {"timestamp": [12.2, 12.6], "text": "between frames"},  # widened to 1.9 .. 2.9: second 2
        {"start": "00:00:14.000", "end": "00:00:16.000", "line": "after the last"},
    ]
    dump(folder / "subtitles" / "86Cx_en.json", said)
    clip(folder / "videos" / "86Cx.mp4")


@writes("egoschema")
def egoschema(folder: Path) -> None:
    row = {"q_uid": "0074f7", "google_drive_id": "x", "question": "What is c doing?"}
    options = {f"option {n}": text for n, text in enumerate(("cooking", "cleaning", "washing the red car", "a", "b"))}
    dump(folder / "questions.json", [{**row, **options}, {**row, "q_uid": "hidden"}])
    dump(folder / "subset_answers.json", {"0074f7": 2})
    clip(folder / "videos" / "0074f7.mp4")


@writes("perceptiontest")
def perceptiontest(folder: Path) -> None:
    row = {"id": 0, "question": "Is the object cold?", "options": ["Yes", "No", "Unsure"], "answer_id": 1}
    entry = {"mc_question": [{**row, "area": "physics", "reasoning": "descriptive", "tag": ["x"]}], "metadata": {}}
    dump(folder / "mc_question_valid.json", {"video_10": entry})
    clip(folder / "videos" / "video_10.mp4")


@writes("activitynetqa")
def activitynetqa(folder: Path) -> None:
    questions = [("is he smiling", "no", 3), ("what does he do before", "dance", 2)]
    ids = [f"v_x_{n}" for n in range(len(questions))]
    asked = [{"video_name": "x", "question": q, "question_id": i} for i, (q, _, _) in zip(ids, questions)]
    dump(folder / "test_q.json", asked)
    told = [{"answer": a, "type": kind, "question_id": i} for i, (_, a, kind) in zip(ids, questions)]
    dump(folder / "test_a.json", told[::-1])
    clip(folder / "all_test" / "v_x.mkv")
