"""Compressed models as lmms-eval models, found through its entry-point group `lmms_eval.models`:

    lmms-eval --model ppe_npu --model_args pretrained=PATH,compression=ppe,ratio=0.25 --tasks textvqa_val --batch_size 8

Generation tasks use the chat interface. lmms-eval runs loglikelihood tasks (multiple_choice) only on simple models: add
--force_simple for them. Tasks with several rounds, audio or sampling are refused.
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
from ppe_npu.evaluation.lmms import Answerer, in_batches, question, translated
from ppe_npu.methods.base import published


def manifest() -> ModelManifest:
    """The manifest that the entry point loads."""
    return ModelManifest(
        "ppe_npu",
        simple_class_path=f"{__name__}.SimpleModel",
        chat_class_path=f"{__name__}.ChatModel",
    )


# Arguments of lmms-eval's own Qwen models that have no effect here: devices, kernels and caches are chosen otherwise.
_UNUSED = ("device_map", "use_cache", "attn_implementation", "use_flash_attention_2", "interleave_visuals")


def _counted(answer: str, tokens: int) -> Any:
    """An answer with its number of tokens, which lmms-eval's table of throughput needs; the bare answer in versions
    without token counts."""
    counts = getattr(instance, "TokenCounts", None)
    return answer if counts is None else GenerationResult(answer, token_counts=counts(output_tokens=tokens))


class _Model(lmms):
    """Base of both interfaces. Arguments as for Answerer.load; max_batch_size, which lmms-eval passes, is unused."""

    def __init__(self, max_batch_size: int | None = None, **arguments: Any) -> None:
        super().__init__()
        unused = sorted(set(arguments) & set(_UNUSED))
        if unused:
            logger.warning(f"ppe_npu: model_args {', '.join(unused)} have no effect here")
        arguments = {name: value for name, value in arguments.items() if name not in _UNUSED}
        known = [name for name in inspect.signature(Answerer.load).parameters if name != "fields"]
        # If the compression is a method with settings, an unknown argument is taken for one of them.
        unknown = sorted(set(arguments) - set(known)) if arguments.get("compression") not in published() else []
        if unknown or "pretrained" not in arguments:
            wrong = f"unknown model_args {', '.join(unknown)}" if unknown else "model_args without pretrained"
            raise InputError(f"{wrong}: use some of {', '.join(known)}")
        self.answerer = Answerer.load(**arguments)
        self.batch_size, self.device = self.answerer.batch_size, self.answerer.model.device

    def _generated(self, requests: Sequence[Any], options: int, conversation_of: Any) -> list[str]:
        """Answers in the requests' order. options: number of the request's argument that holds generation_kwargs."""
        answers: list[Any] = [""] * len(requests)
        bar = tqdm(total=len(requests), disable=self.rank != 0, desc="ppe_npu")
        batches = in_batches(
            requests,
            lambda request: request.args[options],
            lambda: self.answerer.batch_size,  # it shrinks after a lack of memory
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
        """Free the device, for example for a judge model."""
        self.answerer = None
        super().clean()


class ChatModel(_Model):
    """lmms-eval's chat interface: questions are messages."""

    is_simple = False

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        def asked(context, messages_of, options, number, task, split):
            return translated(messages_of(self._document(task, split, number)))

        return self._generated(requests, 2, asked)

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        raise InputError("lmms-eval scores continuations with simple models only: add --force_simple")


class SimpleModel(_Model):
    """lmms-eval's simple interface: questions are a text and a list of visuals; continuations are scored by loss."""

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
            for request in requests[len(scores) : len(scores) + self.answerer.batch_size]:  # which may shrink
                if len(request.args) != 6:
                    raise InputError("acc_mutual_info asks about answers without their question: choose another metric")
                context, target, visuals_of, number, task, split = request.args
                document = self._document(task, split, number)
                asked.append(question(context, visuals_of(document)))
                wanted.append(target if isinstance(target, str) else target(document))
            scores += self.answerer.losses(asked, wanted)
            bar.update(len(asked))
        bar.close()
        # lmms-eval 0.7.3 turns a bare pair into a text that it then fails to read; a wrapped pair it leaves as it is.
        return [GenerationResult(score) for score in scores]
