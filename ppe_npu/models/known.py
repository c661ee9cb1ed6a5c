"""The parts of a decoder that the seam was written for; any other part is refused by name.

Stages call the layers directly: a layer that takes other arguments, sees another part of the past, or numbers its
positions differently would silently compute something else. fused_classes.py is the like for fuse().
"""

from collections.abc import Collection, Iterable, Mapping, Sequence

from ppe_npu.engine.pixels import leave_after
from ppe_npu.engine.rotary import GROWING
from ppe_npu.engine.shown import LAYER_NEEDS
from ppe_npu.errors import InputError
from ppe_npu.methods.base import Method

LAYER_TYPES = ("full_attention", "sliding_attention", "linear_attention")
LINEAR = ("Qwen3_5GatedDeltaNet", "Qwen3_5MoeGatedDeltaNet")  # the modules that take the place of attention
# Decoder layers that several families use unchanged, and the attention in them. Each rotates a channel together with
# the one half a head further on.
DECODERS = {
    "LlamaDecoderLayer": "LlamaAttention",
    "MistralDecoderLayer": "MistralAttention",
    "Qwen2DecoderLayer": "Qwen2Attention",
    "Qwen3DecoderLayer": "Qwen3Attention",
    "Qwen3MoeDecoderLayer": "Qwen3MoeAttention",
}
# Classes that were examined and do not fit, and the reason.
REFUSED = {
    "Gemma3ForConditionalGeneration": "attention in pictures is bidirectional, and layers have own rotary embeddings",
    "PaliGemmaForConditionalGeneration": "attention in a prompt is bidirectional",
    "Mistral3ForConditionalGeneration": "a text token follows each row of a picture",
    "Ovis2ForConditionalGeneration": "its vision tower outputs embeddings of marker tokens in the text",
    "AyaVisionForConditionalGeneration": "its decoder has layers with sliding attention and without positions",
    "Cohere2VisionForConditionalGeneration": "its decoder has layers with sliding attention and without positions",
    "Ernie4_5_VLMoeForConditionalGeneration": "its rotary embedding uses the frequencies in another order",
    "Ernie4_5_VL_MoeForConditionalGeneration": "its rotary embedding uses the frequencies in another order",
    "HunYuanVLForConditionalGeneration": "its positions have four axes",
    "Qwen2_5OmniForConditionalGeneration": "give its .thinker instead",
}
ROPE_TYPES = ("default", "linear", "yarn", "llama3", GROWING)


SINCE = "5.22"  # the first transformers release with which the families other than Qwen's were tested


def check_release(subject: str) -> None:
    """Raise InputError if transformers is older than the releases that the subject was tested with."""
    import transformers
    from packaging.version import Version

    if Version(transformers.__version__) < Version(SINCE):
        raise InputError(
            f"{subject} is supported from transformers {SINCE} on, and this is {transformers.__version__}: "
            f"pip install 'transformers>={SINCE}'"
        )


def check_decoder(text, staged: bool, channels: int) -> None:
    """Refuse a decoder with settings that the seam does not support.

    Args:
        text: transformers' text model, with config, layers and rotary_emb.
        staged: whether its layers run stage by stage, each stage on fewer tokens.
        channels: how many channels mrope_section assigns to an axis.

    Raises:
        InputError: an unknown rotary embedding or layer type (the message has its name and the known ones), or sections
            whose sum is not the number of channels of half a head.
    """
    half = text.rotary_emb.inv_freq.numel()
    if channels != half:
        raise InputError(
            f"mrope_section has {channels} channels in all, but half a head has {half}: make its sum {half}"
        )
    _check("rope_type", [text.rotary_emb.rope_type], ROPE_TYPES)
    types = set(getattr(text.config, "layer_types", None) or ())
    if not types and getattr(text.config, "sliding_window", None) is not None:
        types = {"sliding_attention"}  # Mistral's configs have no layer_types
    linear = not all(map(has_attention, text.layers))
    _check("layers of type", sorted(types), [kind for kind in LAYER_TYPES if linear or kind != "linear_attention"])
    if staged and "sliding_attention" in types:
        raise InputError("layers with sliding attention cannot be compressed on entry: set use_sliding_window=False")


def turned_channels(text_config) -> int:
    """How many channels of half a head are rotated."""
    head = getattr(text_config, "head_dim", None) or text_config.hidden_size // text_config.num_attention_heads
    return int(head * text_config.rope_parameters.get("partial_rotary_factor", 1.0)) // 2


def text_model(model):
    """The text model of a ...Model, under whichever name the family gives it."""
    return getattr(model, "language_model", None) or model.text_model


def check_layers(layers: Iterable, known: Mapping[str, str]) -> None:
    """Refuse decoder layers of classes that a family was not written for.

    Args:
        layers: the text model's. known: class names of the family's decoder layers, and of the attention in each.

    Raises:
        InputError: an unknown layer or attention; the message has its name and the known ones.
    """
    for layer in layers:
        layer = getattr(layer, "_orig_mod", layer)  # as torch.compile wraps it
        _check("a layer of class", [_name(layer, known)], known)
        own = list(known.values()) if has_attention(layer) else LINEAR
        attention = layer.self_attn if has_attention(layer) else getattr(layer, "linear_attn", None)
        _check("attention of class", [_name(attention, own)], own)


def has_attention(layer) -> bool:
    """Whether a decoder layer attends to earlier tokens; one with linear attention keeps a state of them instead."""
    return hasattr(layer, "self_attn")


def is_gated(attention) -> bool:
    """Whether q_proj also produces a gate for each head, by which the output of attention is multiplied."""
    wide, heard = getattr(attention.q_proj, "out_features", None), getattr(attention.o_proj, "in_features", None)
    return wide is not None and heard is not None and wide == 2 * heard


def check_looked_at(layers: Sequence, methods: Iterable[Method]) -> None:
    """Raise InputError where a method looks at the attention of a decoder layer without attention."""
    for method in methods:
        for layer in method.layers if method.needs & LAYER_NEEDS else ():
            seen = layer - method.layer_before
            if not has_attention(layers[seen]):
                before = int(method.layer_before)
                others = [n for n in range(before, len(layers)) if has_attention(layers[n - before])]
                raise InputError(
                    f"{method.name} with layer={layer} looks at attention in layer {seen}, which is linear: "
                    f"give one of the layers {others}"
                )


def check_tower(blocks: Iterable, known: Mapping[str, str]) -> None:
    """Refuse vision tower blocks of classes that a family was not written for, where a method looks into them.

    Args:
        blocks: the blocks that methods look into. known: class names of the family's blocks, and of their attention.

    Raises:
        InputError: an unknown block or attention; the message has its name and the known ones.
    """
    for block in blocks:
        block = getattr(block, "_orig_mod", block)
        _check("a block of class", [_name(block, known)], known, "vision tower")
        attention = block.attn if hasattr(block, "attn") else block.attention
        heard = list(known.values())
        _check("attention of class", [_name(attention, heard)], heard, "vision tower")


def check_with_pvc(methods: Iterable[Method]) -> None:
    """Raise InputError where a method drops patches inside or before a tower with PVC's modules, which attend from each
    patch to the same patch of other frames."""
    for method in methods:
        if method.place == "tower" or (method.place == "pixels" and leave_after(method) != -1):
            remedy = "use a step at the input or, where the family has steps at the pixels, leave_after=-1"
            raise InputError(
                f"{method.name}: PVC's attention over frames inside this vision tower needs the patches of all frames, "
                f"but this step leaves some out; {remedy}"
            )


def _name(module, known: Iterable[str]) -> str:
    """The name of a module's class, or of the known class that this one is derived from (as fully_shard does)."""
    names = [base.__name__ for base in type(module).__mro__]
    return next((name for name in names if name in known), names[0])


def _check(what: str, names: Iterable[str], known: Collection[str], part: str = "decoder") -> None:
    for name in names:
        if name not in known:
            which = "it" if len(known) == 1 else "one of them"
            raise InputError(
                f"the {part} has {what} {name!r}: this family supports {', '.join(known)} only; load a model that has "
                f"{which}"
            )
