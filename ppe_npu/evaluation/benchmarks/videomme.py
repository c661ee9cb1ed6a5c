"""Video-MME (Fu et al. 2024, arXiv 2405.21075): short, medium and long videos, without and with subtitles."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from ppe_npu.evaluation.benchmarks.dataset import Choice, Row, several
from ppe_npu.evaluation.benchmarks.readers import Parquet, read_srt
from ppe_npu.evaluation.metrics import first_capital, mean_by


class VideoMME(Choice):
    """The type is the duration. The prompt is that of the Video-MME page; the data's options include their letters."""

    name = "videomme"
    modality = "video"
    folder = "videomme"
    needs = ("**/test-*.parquet", "data")
    home = "data set lmms-lab/Video-MME on the Hugging Face Hub (parquet; videos_chunked_*.zip make data/)"
    scored_as = "videomme"
    metric = "accuracy; letters as evaluation/eval_your_results.py reads them; an answer without one is wrong"
    form = (
        "Select the best answer to the following multiple-choice question based on the video. Respond with only the "
        "letter (A, B, C, or D) of the correct option.\n{question}\n{options}\nThe best answer is:"
    )

    def read(self) -> list[Row]:
        return Parquet(self.files(self.needs[0])).rows

    def sample(self, row: Row) -> Row:
        return {
            "index": row["question_id"],
            "prompt": self.prompt(row),
            "GT": row["answer"],
            "type": row["duration"],
            "video_path": self.video("data", row["videoID"]),
        }

    def prompt(self, row: Row) -> str:
        """The text of a question."""
        return self.form.format(question=row["question"], options="\n".join(several(row["options"])))

    def letter(self, answer: str, sample: Row) -> str:
        return first_capital(answer)

    def metrics(self, rows: Iterable[Mapping[str, Any]]) -> dict[str, float]:
        """Accuracy per duration, and "of answered": over answers that name a letter, as in the published script."""
        rows = list(rows)
        answered = [row for row in rows if first_capital(row["answer"])]
        return {**mean_by(rows, lambda row: str(row["type"])), **mean_by(answered, lambda row: "of answered")}


class VideoMMESubtitles(VideoMME):
    """The same questions after all subtitles of the video, so that the prompt does not depend on the frames taken."""

    name = "videomme_subtitles"
    needs = (*VideoMME.needs, "subtitle")
    home = VideoMME.home + " and subtitle.zip"
    form = (
        "This video's subtitles are listed below:\n{subtitles}\nSelect the best answer to the following "
        "multiple-choice question based on the video and the subtitles. Respond with only the letter (A, B, C, or D) "
        "of the correct option.\n{question}\n{options}\nThe best answer is:"
    )

    def prompt(self, row: Row) -> str:
        path = self.root / "subtitle" / f"{row['videoID']}.srt"
        # Videos without speech have no file; the text for them is that of the Video-MME page.
        subtitles = "\n".join(read_srt(path)) if path.is_file() else "No subtitles available"
        return self.form.format(
            question=row["question"], options="\n".join(several(row["options"])), subtitles=subtitles
        )
