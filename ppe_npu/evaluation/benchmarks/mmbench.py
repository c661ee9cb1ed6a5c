"""MMBench (Liu et al. 2024, arXiv 2307.06281): a .tsv with pictures in base64; plain and circular evaluation."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

from ppe_npu.evaluation.benchmarks.dataset import LETTER, ByType, Choice, Row, Sample, lettered
from ppe_npu.evaluation.benchmarks.readers import decode_image, read_table
from ppe_npu.evaluation.metrics import mean_by, mmbench_letter

_TURN = 1_000_000  # a question's rotated copies have its index plus a multiple of this, as in the published files


class MMBench(ByType, Choice):
    """Every question once; the type is MMBench's fine category.

    The prompt is lmms-eval's (tasks/mmbench). The letter is found by VLMEvalKit's rules without a judge; an answer that
    would need the judge counts as wrong.
    """

    name = "mmbench_en"
    modality = "image"
    folder = "mmbench"
    needs = ("*dev_en*.tsv",)
    home = "mmbench_dev_en_20231003.tsv of the MMBench homepage (mmbench.opencompass.org.cn)"
    metric = "accuracy; letters as VLMEvalKit e8e78f0 reads them with exact_matching (vlmeval/utils/matching_util.py)"
    form = "{hint}{question} There are several options:\n{options}\n\n" + LETTER
    hint_form = "{hint} "
    edition = 2
    scored_as = "mmbench"
    max_new_tokens = 256

    def read(self) -> list[Row]:
        rows = read_table(self.file(self.needs[0]))
        self._images = {row["index"]: row["image"] for row in rows}
        return [row for row in rows if int(row["index"]) < _TURN]

    def sample(self, row: Row) -> Row:
        options = {letter: row[letter] for letter in "ABCDE" if _given(row.get(letter))}
        hint = self.hint_form.format(hint=row["hint"]) if _given(row.get("hint")) else ""
        return Sample(
            {
                "index": int(row["index"]),
                "prompt": self.form.format(
                    hint=hint, question=row["question"], options=lettered(list(options.values()))
                ),
                "GT": row["answer"],
                "type": row["category"],
                "options": options,
            },
            image=partial(self._image, row["image"], row["index"]),
        )

    def _image(self, value: str, index: str) -> Any:
        # A short value is the index of the row that holds the picture.
        return decode_image(self._images.get(value, value), f"{self.name} {index}")

    def letter(self, answer: str, sample: Row) -> str:
        return mmbench_letter(answer, sample["options"])


class MMBenchCircular(MMBench):
    """Every question once per option, each time with the options rotated by one; right only if all rotations are
    answered right (section 4.2)."""

    name = "mmbench_en_circular"
    metric = "circular accuracy: a question counts if all its turns are right; letters as in mmbench_en"
    headline = "circular"

    def read(self) -> list[Row]:
        return [turned for row in super().read() for turned in _turns(row)]

    def unit(self, row: Mapping[str, Any]) -> int:
        """The question, with all its rotations."""
        return int(row["index"]) % _TURN

    def metrics(self, rows: Iterable[Mapping[str, Any]]) -> dict[str, float]:
        """ "circular" accuracy; "vanilla", the accuracy without rotations; and circular accuracy per category."""
        groups: dict[Any, list[Mapping[str, Any]]] = {}
        for row in rows:
            groups.setdefault((self.unit(row), row.get("copy")), []).append(row)
        every = [{**group[0], "score": float(all(row["score"] for row in group))} for group in groups.values()]
        plain = [row for group in groups.values() for row in group if int(row["index"]) < _TURN]
        overall = {**mean_by(every, lambda row: "circular"), **mean_by(plain, lambda row: "vanilla")}
        return {**overall, **mean_by(every, lambda row: str(row["type"]))}


class MMBenchCN(MMBench):
    """MMBench in Chinese."""

    name = "mmbench_cn"
    needs = ("*dev_cn*.tsv",)
    home = "mmbench_dev_cn_20231003.tsv of the MMBench homepage (mmbench.opencompass.org.cn)"
    form = "{hint}{question} 有如下几个选项：\n{options}\n\n请直接使用所提供的选项字母作为答案回答。"


class MMBenchCNCircular(MMBenchCircular):
    """Circular MMBench in Chinese."""

    name = "mmbench_cn_circular"
    needs, home, form = MMBenchCN.needs, MMBenchCN.home, MMBenchCN.form


def _turns(row: Row) -> list[Row]:
    """A row and its copies with the options, and the right letter, rotated by one, two, ... places."""
    letters = [letter for letter in "ABCDE" if _given(row.get(letter))]
    right, out = letters.index(row["answer"]), []
    for turn in range(len(letters)):
        moved = {letters[(at + turn) % len(letters)]: row[letter] for at, letter in enumerate(letters)}
        place = letters[(right + turn) % len(letters)]
        out.append({**row, **moved, "answer": place, "index": str(int(row["index"]) + turn * _TURN)})
    return out


def _given(value: str | None) -> bool:
    return value not in (None, "", "nan")
