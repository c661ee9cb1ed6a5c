"""A checkpoint's settings for generate(): the fields of generation_config.json, and which values are neutral."""

from __future__ import annotations

import functools
import json
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ppe_npu.checkpoints.trust import NO_CODE
from ppe_npu.errors import InputError, first_line

GenerationSettings = dict[str, Any]
# Values that do what transformers does by default. A field that is not listed is neutral if it is None, false or empty.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "max_length": (20,),
    "use_cache": (True,),
    "num_beams": (1,),
    "temperature": (1,),
    "top_k": (50, 0),
    "top_p": (1,),
    "typical_p": (1,),
    "repetition_penalty": (1,),
    "encoder_repetition_penalty": (1,),
    "length_penalty": (1,),
    "guidance_scale": (1,),
    "num_return_sequences": (1,),
    "num_beam_groups": (1,),
    "num_assistant_tokens": (20,),
    "num_assistant_tokens_schedule": ("constant",),
    "assistant_confidence_threshold": (0.4,),
    "assistant_lookbehind": (10,),
    "target_lookbehind": (10,),
    **dict.fromkeys(("no_repeat_ngram_size", "encoder_no_repeat_ngram_size", "min_length", "min_new_tokens"), (0,)),
    **dict.fromkeys(("min_p", "epsilon_cutoff", "eta_cutoff", "diversity_penalty"), (0,)),
}
_FLAGS = ("do_sample", "use_cache", "output_scores", "output_logits", "output_attentions", "output_hidden_states")
_TOKENS = ("eos_token_id", "pad_token_id", "bos_token_id", "decoder_start_token_id")
_ID_LISTS = ("suppress_tokens", "begin_suppress_tokens", "bad_words_ids")


def of_checkpoint(path: str | Path) -> GenerationSettings:
    """A checkpoint's settings for generate(), from generation_config.json, or from config.json if there is none.

    Args:
        path: a folder, or an id on the hub.

    Raises:
        InputError: the file, which is named, is not JSON, or one of its values has the wrong type.
    """
    file = _file(path, "generation_config.json")
    if file is not None:
        found = _read(file)
    else:
        file = _file(path, "config.json")
        whole = {} if file is None else _read(file)
        text = whole.get("text_config")
        text = text if isinstance(text, dict) else {}
        names = [*fields(), *_TOKENS]
        both = {name: whole.get(name) if whole.get(name) is not None else text.get(name) for name in names}
        found = {name: value for name, value in both.items() if value is not None}
    for name, value in found.items():
        wanted = None if value is None else _expected(name, value)
        if wanted:
            raise InputError(f"{file}: {name} is {shown_setting(value)}, not {wanted}: fix it, or delete the entry")
    return found


def of_model(model: Any) -> GenerationSettings:
    """A loaded model's settings for generate(): those of its checkpoint, and those that were set since."""
    live = {name: value for name, value in vars(model.generation_config).items() if value is not None}
    return {**getattr(model, "checkpoint_generation", {}), **live}


def transformers_takes(found: Mapping[str, Any]) -> bool:
    """Whether transformers accepts a checkpoint's settings. It refuses some values only because they are combined."""
    from transformers import GenerationConfig

    try:
        GenerationConfig.from_dict(dict(found))
    except Exception:  # the checks of its fields raise errors of any type
        return False
    return True


def unloadable(path: str | Path) -> dict[str, None]:
    """{name: None} for the settings in a checkpoint's config.json with which transformers refuses to load a model.
    Passed to from_pretrained, they replace these settings, which of_checkpoint reads and generate() does not get."""
    file = _file(path, "config.json")
    whole = {} if file is None else _read(file)
    own = [name for name in fields() if whole.get(name) is not None]
    # Returning attentions is refused with every fast attention implementation.
    refused = [name for name in own if name == "output_attentions" or not transformers_takes({name: whole[name]})]
    if not refused:
        return {}
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(str(path), **NO_CODE)
    except Exception:  # loading the model will report it
        return {}
    return {name: None for name in refused if hasattr(config, name)}  # transformers itself drops some


def token_ids(found: Mapping[str, Any]) -> GenerationSettings:
    """The ids of special tokens among a checkpoint's settings."""
    return {name: found[name] for name in _TOKENS[:3] if found.get(name) is not None}


def _file(path: str | Path, name: str) -> Path | None:
    """A file of a checkpoint; None if it has none of that name."""
    folder = Path(path).expanduser()
    if folder.is_dir():
        file = folder / name
    else:
        from transformers.utils import cached_file

        try:
            found = cached_file(str(path), name, _raise_exceptions_for_missing_entries=False)
        except OSError:  # the hub cannot be reached; loading the model will report it
            found = None
        if found is None:
            return None
        file = Path(found)
    return file if file.exists() else None


def _read(file: Path) -> GenerationSettings:
    try:
        if not stat.S_ISREG(file.stat().st_mode):
            raise InputError(f"{file} is not a file: save the checkpoint again")
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, RecursionError, ValueError) as error:  # ValueError also for a number of 5,000 digits
        raise InputError(f"{file} cannot be read as JSON ({first_line(error)}): save the checkpoint again") from error
    if not isinstance(found, dict):
        raise InputError(f"{file} is {shown_setting(found)}, not the settings of generate(): save the checkpoint again")
    return found


@functools.cache
def fields() -> tuple[str, ...]:
    """Names of all settings for generate(), without token ids, that the installed transformers has."""
    from transformers import GenerationConfig

    other = ("transformers_version", "generation_kwargs", *_TOKENS)
    return tuple(name for name in vars(GenerationConfig()) if not name.startswith("_") and name not in other)


def _expected(name: str, value: Any) -> str | None:
    """The type that a field must have, in words, if the value has another one; None if the value may be right."""
    whole = isinstance(value, int) and not isinstance(value, bool)
    if name in ("eos_token_id", "pad_token_id", "bos_token_id"):
        ids = value if isinstance(value, list) and name == "eos_token_id" else [value]
        right = all(isinstance(v, int) and not isinstance(v, bool) and abs(v) < 2**63 for v in ids)
        return None if right else "a token id"
    if name in _FLAGS:
        return None if isinstance(value, bool) else "true or false"
    if name in _NEUTRAL and not isinstance(_NEUTRAL[name][0], str):
        return None if whole or isinstance(value, float) else "a number"
    if name in _ID_LISTS:
        return None if isinstance(value, list) else "a list"
    return None


def is_neutral(name: str, value: Any) -> bool:
    """Whether a value does not change what generate() does by default."""
    if name in _NEUTRAL and isinstance(value, (bool, int, float, str)):
        return value in _NEUTRAL[name]
    return value is None or value is False or (isinstance(value, (str, list, tuple, dict)) and not value)


def shown_setting(value: Any) -> str:
    """A value on one line, shortened."""
    try:
        text = value if isinstance(value, str) else json.dumps(value)
    except (TypeError, ValueError, RecursionError):
        text = type(value).__name__
    text = " ".join(text.split())
    return text if len(text) <= 60 else f"{text[:57]}..."
