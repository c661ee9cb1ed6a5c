"""SEED-Bench (Li et al. 2023, arXiv 2307.16125): dimensions 1 to 9 ask about pictures, 10 to 12 about videos."""

from __future__ import annotations

from ppe_npu.data.sampling import VideoSampling
from ppe_npu.evaluation.benchmarks.dataset import LETTER, Choice, Row, lettered
from ppe_npu.evaluation.benchmarks.readers import read_json
from ppe_npu.evaluation.metrics import first_character

# Dimension -> (folder of its videos, units per second in which segments are given: 1.0 for seconds, else frames).
_VIDEOS = {10: ("ssv2", 1.0), 11: ("epic_kitchens", 1.0), 12: ("breakfast", 15.0)}


class SEEDBenchImage(Choice):
    """Questions about pictures; the type is the dimension's name. Prompt: lmms-eval tasks/seedbench."""

    name = "seedbench_image"
    modality = "image"
    folder = "seedbench"
    needs = ("SEED-Bench.json", "SEED-Bench-image")
    home = "data set AILab-CVC/SEED-Bench on the Hugging Face Hub (SEED-Bench.json, SEED-Bench-image.zip)"
    metric = "accuracy; the answer's first character (lmms-eval)"
    form = "{question}\n{options}\n" + LETTER

    def read(self) -> list[Row]:
        data = read_json(self.file("SEED-Bench.json"))
        self._dimensions = {number: name for name, number in data["question_type"].items()}
        return [row for row in data["questions"] if row["data_type"] == self.modality]

    def sample(self, row: Row) -> Row:
        options = [row[f"choice_{letter}"] for letter in "abcd"]
        return {
            "index": str(row["question_id"]),
            "prompt": self.form.format(question=row["question"], options=lettered(options)),
            "GT": row["answer"],
            "type": self._dimensions[row["question_type_id"]],
            "options": options,
            **self.visual(row),
        }

    def visual(self, row: Row) -> Row:
        """The picture or video that a question is about."""
        return {"image_path": str(self.root / "SEED-Bench-image" / row["data_id"])}

    def letter(self, answer: str, sample: Row) -> str:
        return first_character(answer)


class SEEDBenchVideo(SEEDBenchImage):
    """Questions about videos; those of dimensions 11 and 12 are about a segment (SEED-Bench DATASET.md)."""

    name = "seedbench_video"
    modality = "video"
    needs = ("SEED-Bench.json", *(folder for folder, _ in _VIDEOS.values()))
    home = (
        "data set AILab-CVC/SEED-Bench on the Hugging Face Hub (SEED-Bench.json); videos of Something-Something v2 "
        "(20bn), EPIC-KITCHENS (3h91syskeag572hl6tvuovwv4d/videos/test) and Breakfast (BreakfastII_15fps_qvga_sync)"
    )

    def visual(self, row: Row) -> Row:
        folder, rate = _VIDEOS[row["question_type_id"]]
        found: Row = {"video_path": str(self.root / folder / row["data_id"])}
        if row.get("segment"):
            start, end = (float(bound) / rate for bound in row["segment"])
            found["sampling"] = VideoSampling(start=start, end=end)
        return found
