"""LongVideoBench (Wu et al. 2024, arXiv 2407.15754), validation: a video's frames with its subtitles between them."""

from __future__ import annotations

from ppe_npu.data.videos import VideoFrame
from ppe_npu.evaluation.benchmarks.dataset import LETTER, LETTERS, ByType, Choice, Row, lettered
from ppe_npu.evaluation.benchmarks.readers import read_json
from ppe_npu.evaluation.metrics import longvideobench_letter

FRAMES = 16  # at most; a shorter video gives one per second


class LongVideoBench(ByType, Choice):
    """The type is the group of durations in seconds (15, 60, 600, 3600).

    Frames and subtitles are interleaved as in lmms-eval's longvideobench_val_i: a subtitle follows the frames up to the
    middle of its time, if a frame lies within that time (widened to one second). Frames are pictures of the prompt, so
    a run's settings for video sampling do not apply to them.
    """

    name = "longvideobench"
    modality = "image"
    folder = "longvideobench"
    needs = ("lvb_val.json", "videos", "subtitles")
    home = "longvideobench/LongVideoBench on the Hugging Face Hub (lvb_val.json, videos.tar.part.*, subtitles.tar)"
    metric = "accuracy; the first capital A to E (lmms-eval); an answer without one is wrong, or drawn (--draws)"
    form = "{frames}\n{question}\n{options}\n" + LETTER
    max_new_tokens = 32
    scored_as = "longvideobench"

    def read(self) -> list[Row]:
        return read_json(self.file("lvb_val.json"))

    def _check_rows(self) -> None:
        room = self.room()  # checked before sample() reads subtitles; rows of another form are left to super()
        named = ((folder, row.get(key)) for row in self.rows if isinstance(row, dict) for folder, key in _FILES)
        for folder, name in named:
            if isinstance(name, str):
                room.check(self.root / folder / name, f"{self.name}: a file of a row,")
        super()._check_rows()
        paths = [f"{folder}/{row[key]}" for row in self.rows for folder, key in _FILES]
        self._refuse([path for path in dict.fromkeys(paths) if not (self.root / path).is_file()])

    def sample(self, row: Row) -> Row:
        video = str(self.root / "videos" / row["video_path"])
        return {
            "index": row["id"],
            "prompt": self.form.format(
                frames=self._interleaved(row), question=row["question"], options=lettered(row["candidates"])
            ),
            "GT": LETTERS[row["correct_choice"]],
            "type": str(row["duration_group"]),
            "options": row["candidates"],
            "image": [VideoFrame(video, seconds) for seconds in frame_times(row["duration"])],
        }

    def _interleaved(self, row: Row) -> str:
        path = self.root / "subtitles" / row["subtitle_path"]
        subtitles = read_json(path) if path.is_file() else []  # _check_rows names the file that is missing
        return interleave(
            frame_times(row["duration"]), subtitles, row["starting_timestamp_for_subtitles"], row["duration"]
        )

    def letter(self, answer: str, sample: Row) -> str:
        return longvideobench_letter(answer)


class LongVideoBenchVideo(LongVideoBench):
    """The same questions about the video itself, without subtitles, as reported by papers (lmms-eval's val_v)."""

    name = "longvideobench_v"
    modality = "video"
    form = "{question}\n{options}\n" + LETTER

    def sample(self, row: Row) -> Row:
        return {
            "index": row["id"],
            "prompt": self.form.format(question=row["question"], options=lettered(row["candidates"])),
            "GT": LETTERS[row["correct_choice"]],
            "type": str(row["duration_group"]),
            "options": row["candidates"],
            "video_path": str(self.root / "videos" / row["video_path"]),
        }


_FILES = (("videos", "video_path"), ("subtitles", "subtitle_path"))


def frame_times(duration: float) -> list[float]:
    """Times of the frames in seconds: FRAMES evenly spaced ones, or one per second if the video is not longer."""
    if duration > FRAMES:
        return [duration / FRAMES * number for number in range(FRAMES)]
    return [float(second) for second in range(max(int(duration), 1))]


def interleave(times: list[float], subtitles: list[Row], offset: float, duration: float) -> str:
    """Lines in order of time: <image> for each frame, and the text of each subtitle that covers a frame.

    Args:
        times: the times of the frames, in seconds, rising.
        subtitles: {"timestamp": [start, end], "text"} or {"start", "end" as h:m:s, "line"}.
        offset: seconds at which the video starts in the subtitles' time.
        duration: the length of the video in seconds; used as the end of a subtitle that has none.
    """
    lines, shown = [], 0
    for subtitle in subtitles:
        start, end, text = _bounds(subtitle, duration)
        start, end = start - offset, end - offset
        middle = (start + end) / 2
        passed = sum(time <= middle for time in times)
        lines += ["<image>"] * (passed - shown if passed > shown else 0)
        shown = max(shown, passed)
        if end - start < 1:
            start, end = middle - 0.5, middle + 0.5
        if any(start < time < end for time in times):
            lines.append(text)
    return "\n".join([*lines, *["<image>"] * (len(times) - shown)])


def _bounds(subtitle: Row, duration: float) -> tuple[float, float, str]:
    if "timestamp" in subtitle:
        start, end = subtitle["timestamp"]
        return start, end if isinstance(end, float) else duration, subtitle["text"]
    return _seconds(subtitle["start"]), _seconds(subtitle["end"]), subtitle["line"]


def _seconds(text: str) -> float:
    hours, minutes, seconds = text.split(":")
    return int(hours) * 3600 + int(minutes) * 60 + float(seconds)
