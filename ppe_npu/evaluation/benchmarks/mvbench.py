"""MVBench (Li et al. 2024, arXiv 2311.17005): 20 tasks of 200 questions each about short videos.

Folders, clips and frames as in OpenGVLab/Ask-Anything video_chat2/mvbench.ipynb: the middle frames of 16 equal parts of
the clip or of the whole video, some of them repeatedly if it has fewer frames. A run that asks for another number of
frames (the notebook also uses 8) gets that many.
"""

from __future__ import annotations

from collections.abc import Iterable

from ppe_npu.data.sampling import VideoSampling
from ppe_npu.evaluation.benchmarks.dataset import LETTERS, Choice, Row, bracketed
from ppe_npu.evaluation.benchmarks.readers import read_json
from ppe_npu.evaluation.metrics import opening_letter, opens_with
from ppe_npu.evaluation.protocols import Protocol

# Task -> its folder below video/.
TASKS = {
    "action_sequence": "star/Charades_v1_480",
    "action_prediction": "star/Charades_v1_480",
    "action_antonym": "ssv2_video",
    "fine_grained_action": "Moments_in_Time_Raw/videos",
    "unexpected_action": "FunQA_test/test",
    "object_existence": "clevrer/video_validation",
    "object_interaction": "star/Charades_v1_480",
    "object_shuffle": "perception/videos",
    "moving_direction": "clevrer/video_validation",
    "action_localization": "sta/sta_video",
    "scene_transition": "scene_qa/video",
    "action_count": "perception/videos",
    "moving_count": "clevrer/video_validation",
    "moving_attribute": "clevrer/video_validation",
    "state_change": "perception/videos",
    "fine_grained_pose": "nturgbd",
    "character_order": "perception/videos",
    "egocentric_navigation": "vlnqa",
    "episodic_reasoning": "tvqa/frames_fps3_hq",
    "counterfactual_inference": "clevrer/video_validation",
}
# Tasks that ask about the clip between "start" and "end" seconds; the others ask about the whole video.
CLIPS = ("action_sequence", "action_prediction", "object_interaction", "action_localization", "episodic_reasoning")
FRAMES = 16
FRAME_RATE = 3.0  # of episodic_reasoning, whose videos are folders of frames


class MVBench(Choice):
    """The type is the task. The mean over questions equals that over tasks, because all tasks have 200 questions."""

    name = "mvbench"
    modality = "video"
    folder = "mvbench"
    needs = (*(f"json/{task}.json" for task in TASKS), *(f"video/{folder}" for folder in dict.fromkeys(TASKS.values())))
    home = "data set OpenGVLab/MVBench on the Hugging Face Hub (json/, video/*.zip); NTU RGB+D videos from their page"
    metric = "accuracy; as check_ans in mvbench.ipynb, but an answer without a letter is wrong"
    edition = 2
    middles = True
    form = (
        "Carefully watch the video and pay attention to the cause and sequence of events, the detail and movement of "
        "objects, and the action and pose of persons. Based on your observations, select the best option that "
        "accurately addresses the question.\nQuestion: {question}\nOptions:\n{options}\nOnly give the best option."
    )

    def use(self, protocol: Protocol) -> None:
        """Adopt a protocol; if it has a rule for frames, they are evenly spaced by it instead of the middle ones."""
        super().use(protocol)
        self.middles = not protocol.video

    @classmethod
    def edition_by(cls, protocol: Protocol) -> int:
        return super().edition_by(protocol) + bool(protocol.video)

    def read(self) -> Iterable[Row]:
        for task in TASKS:
            for number, row in enumerate(read_json(self.file(f"json/{task}.json"))):
                yield {**row, "task": task, "number": number}

    def sample(self, row: Row) -> Row:
        task = row["task"]
        clip = {"start": row["start"], "end": row["end"]} if task in CLIPS else {}
        rate = FRAME_RATE if task == "episodic_reasoning" else None
        return {
            "index": f"{task}/{row['number']}",
            "prompt": self.form.format(question=row["question"], options=bracketed(row["candidates"])),
            "GT": LETTERS[row["candidates"].index(row["answer"])],
            "options": [str(option) for option in row["candidates"]],
            "type": task,
            "video_path": str(self.root / "video" / TASKS[task] / row["video"]),
            "sampling": VideoSampling(nframes=FRAMES, middles=self.middles, frame_rate=rate, **clip),
        }

    def letter(self, answer: str, sample: Row) -> str:
        return opening_letter(answer)

    def score(self, answer: str, sample: Row) -> float:
        return float(opens_with(answer, sample["GT"]))
