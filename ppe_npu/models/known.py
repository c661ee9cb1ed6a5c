"""The parts of a decoder that the seam was written for; every other one is refused by its name.

The stages call the layers themselves, and fuse() stands in for their attention: a layer that is given other arguments,
sees another part of the past, or numbers its places otherwise would compute something else without a word.
"""

from collections.abc import Iterable

from ppe_npu.errors import InputError

# Decoder layers, and the attention in each.
LAYERS = {
    "Qwen2VLDecoderLayer": "Qwen2VLAttention",
    "Qwen2_5_VLDecoderLayer": "Qwen2_5_VLAttention",
    "Qwen3VLTextDecoderLayer": "Qwen3VLTextAttention",
}
LAYER_TYPES = ("full_attention", "sliding_attention")
ROPE_TYPES = ("default", "linear", "yarn", "llama3")  # whose frequencies do not change with the length


def check_decoder(text, staged: bool) -> None:
    """Refuse a decoder with parts that the seam does not know.

    Args:
        text: transformers' text model, with config, layers and rotary_emb.
        staged: whether its layers run stage by stage, on fewer tokens each.

    Raises:
        InputError: an unknown rotary embedding, layer or attention; its name and the known ones are in the message.
    """
    _check("rope_type", [text.rotary_emb.rope_type], ROPE_TYPES)
    types = set(getattr(text.config, "layer_types", None) or ())
    _check("layer type", sorted(types), LAYER_TYPES)
    if staged and "sliding_attention" in types:
        raise InputError("layers with sliding attention cannot be compressed on entry: set use_sliding_window=False")
    for layer in text.layers:
        layer = getattr(layer, "_orig_mod", layer)  # as torch.compile wraps it
        _check("decoder layer", _names(layer), LAYERS)
        _check("attention", _names(layer.self_attn), LAYERS.values())


def _names(module) -> list[str]:
    """Of its class; of a class made from a known one (as fully_shard does), the known one's."""
    known = {*LAYERS, *LAYERS.values()}
    names = [base.__name__ for base in type(module).__mro__]
    return [next((name for name in names if name in known), names[0])]


def _check(what: str, names: Iterable[str], known: Iterable[str]) -> None:
    for name in names:
        if name not in known:
            raise InputError(f"{what} {name!r} of the decoder is not supported: supported are {', '.join(known)}")
