"""Compressed models as lmms-eval models, found by its entry-point group `lmms_eval.models`:

    lmms-eval --model ppe_npu --model_args pretrained=PATH,compression=ppe,ratio=0.25 --tasks textvqa_val --batch_size 8

Generation tasks take the chat interface. lmms-eval gives tasks by loglikelihood (multiple_choice) to simple models
only: add --force_simple. Tasks of several rounds, with audio and with sampling are refused.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

from lmms_eval.api import instance
from lmms_eval.api.instance import GenerationResult
from lmms_eval.api.model import lmms
from lmms_eval.models.registry_v2 import ModelManifest
from loguru import logger
from tqdm import tqdm

from ppe_npu.errors import InputError
from ppe_npu.evaluation.lmms import Answerer, conversation, in_batches, question
from ppe_npu.methods.base import published


def manifest() -> ModelManifest:
    """The entry point's payload."""
    return ModelManifest(
        "ppe_npu",
        simple_class_path=f"{__name__}.SimpleModel",
        chat_class_path=f"{__name__}.ChatModel",
    )


# What lmms-eval's own Qwen models take and these do without: devices, kernels and caches are chosen here otherwise.
_UNUSED = ("device_map", "use_cache", "attn_implementation", "use_flash_attention_2", "interleave_visuals")


def _counted(answer: str, tokens: int) -> Any:
    """An answer with its number of tokens, from which lmms-eval makes its table of throughput; of a version that has
    none, the answer."""
    counts = getattr(instance, "TokenCounts", None)
    return answer if counts is None else GenerationResult(answer, token_counts=counts(output_tokens=tokens))


class _Model(lmms):
    """What both interfaces share. Arguments as of Answerer.load; max_batch_size, which lmms-eval passes, is unused."""

    def __init__(self, max_batch_size: int | None = None, **arguments: Any) -> None:
        super().__init__()
        unused = sorted(set(arguments) & set(_UNUSED))
        if unused:
            logger.warning(f"ppe_npu: model_args {', '.join(unused)} change nothing here")
        arguments = {name: value for name, value in arguments.items() if name not in _UNUSED}
        known = [name for name in inspect.signature(Answerer.load).parameters if name != "fields"]
        # What is not known here is a setting of the method that is asked for, if it has one.
        unknown = sorted(set(arguments) - set(known)) if arguments.get("compression") not in published() else []
        if unknown or "pretrained" not in arguments:
            wrong = f"unknown model_args {', '.join(unknown)}" if unknown else "model_args without pretrained"
            raise InputError(f"{wrong}: the keys are {', '.join(known)}")
        self.answerer = Answerer.load(**arguments)
        self.batch_size, self.device = self.answerer.batch_size, self.answerer.model.device

    def _generated(self, requests: Sequence[Any], options: int, conversation_of: Any) -> list[str]:
        """Answers in the requests' order. options: which argument of a request its generation_kwargs are."""
        answers: list[Any] = [""] * len(requests)
        bar = tqdm(total=len(requests), disable=self.rank != 0, desc="ppe_npu")
        batches = in_batches(
            requests,
            lambda request: request.args[options],
            lambda: self.answerer.batch_size,  # smaller after a lack of memory
            lambda request: len(str(request.args[0])),
        )
        for numbers in batches:
            asked, before = [conversation_of(*requests[n].args) for n in numbers], len(self.answerer.new_tokens)
            given = self.answerer.answers(asked, requests[numbers[0]].args[options])
            for number, answer, tokens in zip(numbers, given, self.answerer.new_tokens[before:]):
                answers[number] = _counted(answer, tokens)
            bar.update(len(numbers))
        bar.close()
        logger.info(self.answerer.summary())
        return answers

    def _document(self, task: str, split: str, number: int) -> Any:
        return self.task_dict[task][split][number]

    def generate_until_multi_round(self, requests: Sequence[Any]) -> list[str]:
        raise InputError("tasks of several rounds are not supported: choose one with output_type generate_until")

    def clean(self) -> None:
        """Free the device, perhaps for a judge."""
        self.answerer = None
        super().clean()


class ChatModel(_Model):
    """Questions as messages."""

    is_simple = False

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        def asked(context, messages_of, options, number, task, split):
            return conversation(messages_of(self._document(task, split, number)))

        return self._generated(requests, 2, asked)

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        raise InputError("lmms-eval scores continuations with simple models only: add --force_simple")


class SimpleModel(_Model):
    """Questions as a text and a list of visuals; continuations scored by their loss."""

    is_simple = True

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        def asked(context, options, visuals_of, number, task, split):
            return question(context, visuals_of(self._document(task, split, number)))

        return self._generated(requests, 1, asked)

    def loglikelihood(self, requests: Sequence[Any]) -> list[GenerationResult]:
        scores: list[tuple[float, bool]] = []
        bar = tqdm(total=len(requests), disable=self.rank != 0, desc="ppe_npu")
        while len(scores) < len(requests):
            asked, wanted = [], []
            for request in requests[len(scores) : len(scores) + self.answerer.batch_size]:  # smaller after a lack
                if len(request.args) != 6:
                    raise InputError("acc_mutual_info asks about answers without their question: choose another metric")
                context, target, visuals_of, number, task, split = request.args
                document = self._document(task, split, number)
                asked.append(question(context, visuals_of(document)))
                wanted.append(target if isinstance(target, str) else target(document))
            scores += self.answerer.losses(asked, wanted)
            bar.update(len(asked))
        bar.close()
        # lmms-eval 0.7.3 makes a text of a bare pair, and then fails to read it; what is wrapped it leaves as it is.
        return [GenerationResult(score) for score in scores]
