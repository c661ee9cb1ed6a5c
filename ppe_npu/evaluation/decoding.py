"""How answers are decoded: greedily, whatever a checkpoint's generation_config.json says, unless the user asks for it.

In transformers a file beside the weights changes every generate(): penalties, bans, beams, lengths. Two checkpoints
would then be compared under different rules. So only the ids of special tokens are taken from a checkpoint; its other
settings are read here, so that they can be reported and asked for by name.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from ppe_npu.checkpoints.generation_defaults import GenerationSettings, fields, is_neutral, shown_setting
from ppe_npu.errors import InputError, first_line
from ppe_npu.utils.escape import printable
from ppe_npu.utils.reading import is_number

GenerationChoice = str | Sequence[str] | Mapping[str, Any] | None
CHECKPOINT = "checkpoint"
GREEDY: GenerationSettings = {"do_sample": False, "num_beams": 1, "repetition_penalty": 1.0, "no_repeat_ngram_size": 0}

_SAMPLING = ("temperature", "top_k", "top_p", "min_p", "top_h", "typical_p", "epsilon_cutoff", "eta_cutoff")
_BIASES = "sequence_bias"
_LONGEST = 60  # characters of a name in a message
_BEAMS = ("early_stopping", "length_penalty")


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _ids(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(map(_whole, value))


def _biases(value: Any) -> bool:
    pairs = isinstance(value, list) and all(isinstance(pair, list) and len(pair) == 2 for pair in value)
    return pairs and all(_ids(ids) and is_number(bias) for ids, bias in value)


_FLAG = ("true or false", lambda value: isinstance(value, bool))
# Beyond this range logits overflow or underflow a float.
_FACTOR = ("a number in [1e-6, 1e6]", lambda value: is_number(value) and 1e-6 <= value <= 1e6)
_COUNT = ("a whole number, at least 0", _whole)
_SHARE = ("a number in (0, 1]", lambda value: is_number(value) and 0 < value <= 1)
_LIST = ("a list of token ids", _ids)

# The settings that may be asked for: name -> (allowed values in words, check of a value). None of them changes how many
# answers a prompt has, or what is measured of them.
ASKABLE: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "do_sample": _FLAG,
    "num_beams": ("a whole number in [1, 1024]", lambda value: _whole(value) and 0 < value <= 1024),
    "temperature": _FACTOR,
    "top_k": _COUNT,
    **dict.fromkeys(("top_p", "min_p", "top_h", "typical_p", "epsilon_cutoff", "eta_cutoff"), _SHARE),
    "early_stopping": ("true, false or never", lambda value: isinstance(value, bool) or value == "never"),
    # A million tokens to this power still fit into a float.
    "length_penalty": ("a number in [-50, 50]", lambda value: is_number(value) and abs(value) <= 50),
    "repetition_penalty": _FACTOR,
    "no_repeat_ngram_size": _COUNT,
    "min_new_tokens": _COUNT,
    "suppress_tokens": _LIST,
    "begin_suppress_tokens": _LIST,
    "bad_words_ids": ("a list of lists of token ids", lambda value: isinstance(value, list) and all(map(_ids, value))),
    _BIASES: ("a list of [token ids, bias]", _biases),
    "forced_eos_token_id": ("a token id, or a list of them", lambda value: _whole(value) or _ids(value)),
    "renormalize_logits": _FLAG,
    "remove_invalid_values": _FLAG,
}
_WITH_IDS = ("suppress_tokens", "begin_suppress_tokens", "bad_words_ids", _BIASES, "forced_eos_token_id")
# The checkpoint's settings that the first edition of this package left in force beside greedy search.
_ONCE_LEFT = (
    *("repetition_penalty", "no_repeat_ngram_size", "encoder_repetition_penalty", "encoder_no_repeat_ngram_size"),
    *("min_length", "min_new_tokens", "max_time", "suppress_tokens", "begin_suppress_tokens", "bad_words_ids"),
    *("sequence_bias", "forced_bos_token_id", "forced_eos_token_id", "exponential_decay_length_penalty"),
    *("guidance_scale", "watermarking_config", "renormalize_logits", "remove_invalid_values", "token_healing"),
)


def generation_settings(asked: GenerationChoice, own: Mapping[str, Any]) -> GenerationSettings:
    """The generation settings to use beside GREEDY.

    Args:
        asked: None: no settings; "checkpoint": those of the checkpoint's settings that can be asked for; names and
            values; or a list of "checkpoint" and "name=value", whose named values override the checkpoint's.
        own: the checkpoint's own settings.

    Returns:
        {name: value}, sorted by name, without values that are generate()'s defaults.

    Raises:
        InputError: a name that cannot be asked for, a value of another kind, or one that has no effect.
    """
    singles = dict(asked) if isinstance(asked, Mapping) else dict(map(_parsed, _listed(asked)))
    values: GenerationSettings = {}
    if singles.pop(CHECKPOINT, None) is not None:
        values = {name: value for name, value in own.items() if name in ASKABLE and not is_neutral(name, value)}
        values = {name: value for name, value in values.items() if not _idle(name, {**values, **singles})}
    for name, value in singles.items():
        _check_name(name)
        if _idle(name, {**values, **singles}):
            needed = "do_sample=true" if name in _SAMPLING else "num_beams=2 or more"
            raise InputError(f"generation {name}={shown_setting(value)} has no effect without {needed}: ask for both")
    values |= singles
    for name, value in values.items():
        words, right = ASKABLE[name]
        if not (right(value) or (value == 0 and is_neutral(name, value))):
            whose, remedy = ("", "") if name in singles else ("the checkpoint's ", f": override it with {name}=...")
            raise InputError(f"{whose}generation {name}={shown_setting(value)} must be {words}{remedy}")
    values = {name: values[name] for name in sorted(values) if not is_neutral(name, values[name])}
    # transformers accepts no int for some of these
    values |= {name: float(value) for name, value in values.items() if ASKABLE[name] in (_FACTOR, _SHARE)}
    values |= {_BIASES: [[ids, float(bias)] for ids, bias in values[_BIASES]]} if _BIASES in values else {}
    _check_together(values)
    return values


def _listed(asked: str | Sequence[str] | None) -> Sequence[str]:
    return [asked] if isinstance(asked, str) else asked or []


def _parsed(text: str) -> tuple[str, Any]:
    """(name, value) of a text "name=value"; the value is parsed as JSON, or stays a text if it is not JSON."""
    name, equals, value = str(text).partition("=")
    if name.strip() == CHECKPOINT and not equals:
        return CHECKPOINT, True
    if not equals:
        raise InputError(
            f"generation {shown_setting(text)}: use {CHECKPOINT}, or name=value such as repetition_penalty=1.05"
        )
    try:
        return name.strip(), json.loads(value)
    except (ValueError, RecursionError):
        return name.strip(), value


def _check_name(name: str) -> None:
    if name in ("max_new_tokens", "max_length"):
        raise InputError(f"generation {name} is not among these settings: use max_new_tokens (--max-new-tokens)")
    if name not in ASKABLE:
        named = printable(name) if len(name) < _LONGEST else shown_setting(name)
        raise InputError(f"generation {named} is not supported: use {CHECKPOINT} or some of {', '.join(ASKABLE)}")


def _idle(name: str, values: Mapping[str, Any]) -> bool:
    """Whether a setting has no effect because another one that it needs is not set."""
    if name in _SAMPLING:
        return values.get("do_sample") is not True
    return name in _BEAMS and (values.get("num_beams") or 1) == 1


def _check_together(values: Mapping[str, Any]) -> None:
    from transformers import GenerationConfig

    try:
        GenerationConfig(**{**GREEDY, **values})
    except ValueError as error:
        raise InputError(f"generation {described(values)} is impossible: {first_line(error)}") from error


def check_ids(values: Mapping[str, Any], vocabulary: float) -> None:
    """Raise InputError if the settings contain the id of a token that the model does not have.

    Args:
        vocabulary: number of the model's tokens.
    """
    for name in _WITH_IDS:
        for number in _numbers(values.get(name), name == _BIASES):
            if number >= vocabulary:
                raise InputError(f"generation {name}: the model has no token {number}: use ids below {vocabulary}")


def _numbers(value: Any, biases: bool = False) -> Iterator[int]:
    """The whole numbers in nested lists; for `biases`, pairs of token ids and a bias, only the ids."""
    if isinstance(value, list):
        for part in value:
            yield from _numbers(part[0] if biases else part)
    elif value is not None:
        yield value


def recorded(values: Mapping[str, Any]) -> GenerationSettings:
    """The "generation" entry of a run's settings.json: the rules by which its answers were decoded."""
    return {**GREEDY, **values}


def beside_greedy(generation: Mapping[str, Any]) -> str:
    """The settings in recorded() that differ from greedy search, in one line; "" if none do."""
    return described({name: value for name, value in generation.items() if GREEDY.get(name) != value})


def first_edition(own: Mapping[str, Any]) -> GenerationSettings:
    """recorded() for a run that recorded no rules: the first edition left some settings of the checkpoint in force."""
    return recorded({name: own[name] for name in _ONCE_LEFT if name in own and not is_neutral(name, own[name])})


def ignored(own: Mapping[str, Any], values: Mapping[str, Any]) -> GenerationSettings:
    """The settings of a checkpoint that are not used, with values that JSON can hold, long ones shortened."""
    left = {
        name: own[name]
        for name in fields()
        if name in own and not is_neutral(name, own[name]) and values.get(name) != own[name]
    }
    return {
        name: value if isinstance(value, bool) or is_number(value) else shown_setting(value)
        for name, value in left.items()
    }


def notice(own: Mapping[str, Any], values: Mapping[str, Any]) -> str | None:
    """A line about the ignored settings; None if none are ignored."""
    left = ignored(own, values)
    if not left:
        return None
    return (
        f"the checkpoint's own generation settings are not used ({described(left)}): answers are "
        f"{described(values) or 'greedy'}; --generation of `ppe-npu eval` and `describe` turns some on"
    )


def generation_config(values: Mapping[str, Any], max_new_tokens: int, **tokens: Any) -> Any:
    """A transformers.GenerationConfig with these values and no others. tokens: eos_token_id, pad_token_id, ..."""
    from transformers import GenerationConfig

    everything = {"top_k": 0} if values.get("do_sample") else {}  # transformers' default is 50
    fixed = {"use_cache": True, "return_dict_in_generate": True, "num_return_sequences": 1}
    return GenerationConfig(**{**GREEDY, **everything, **values, **fixed}, max_new_tokens=max_new_tokens, **tokens)


def described(values: Mapping[str, Any]) -> str:
    """Settings in one line."""
    return ", ".join(f"{name}={shown_setting(value)}" for name, value in values.items())
