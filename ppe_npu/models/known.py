"""The parts of a decoder that the seam was written for; every other one is refused by its name.

The stages call the layers themselves, and fuse() stands in for their attention: a layer that is given other arguments,
sees another part of the past, or numbers its places otherwise would compute something else without a word.
"""

from collections.abc import Iterable, Mapping, Sequence

from ppe_npu.engine.pixels import leave_after
from ppe_npu.engine.rotary import GROWING
from ppe_npu.engine.shown import LAYER_NEEDS
from ppe_npu.errors import InputError
from ppe_npu.methods.base import Method

LAYER_TYPES = ("full_attention", "sliding_attention", "linear_attention")
LINEAR = ("Qwen3_5GatedDeltaNet", "Qwen3_5MoeGatedDeltaNet")  # in a layer that has it in place of attention
# Decoders that several families take over whole, and the attention in them. Each turns a channel with the one that
# stands half a head further on.
DECODERS = {
    "LlamaDecoderLayer": "LlamaAttention",
    "MistralDecoderLayer": "MistralAttention",
    "Qwen2DecoderLayer": "Qwen2Attention",
    "Qwen3DecoderLayer": "Qwen3Attention",
    "Qwen3MoeDecoderLayer": "Qwen3MoeAttention",
}
# Attentions that turn neighbouring channels, or a part of a head: they keep their own rotary embedding.
TURNED_OTHERWISE = ("Glm4vTextAttention", "Glm4vMoeTextAttention")
# What was looked at and does not fit, and why.
REFUSED = {
    "Gemma3ForConditionalGeneration": "pictures are seen both ways, and layers have rotary embeddings of their own",
    "PaliGemmaForConditionalGeneration": "a prompt is seen both ways",
    "Mistral3ForConditionalGeneration": "text tokens stand behind each row of a picture",
    "Ovis2ForConditionalGeneration": "its vision tower gives the embeddings of marks among the text",
    "AyaVisionForConditionalGeneration": "its decoder has layers with sliding attention and without positions",
    "Cohere2VisionForConditionalGeneration": "its decoder has layers with sliding attention and without positions",
    "Ernie4_5_VLMoeForConditionalGeneration": "its rotary embedding takes the frequencies in another order",
    "Ernie4_5_VL_MoeForConditionalGeneration": "its rotary embedding takes the frequencies in another order",
    "HunYuanVLForConditionalGeneration": "its positions have four axes",
    "Qwen2_5OmniForConditionalGeneration": "give its .thinker",
}
ROPE_TYPES = ("default", "linear", "yarn", "llama3", GROWING)


SINCE = "5.22"  # the first release of transformers with which the families beside Qwen's were tried


def check_release(subject: str) -> None:
    """Raise InputError where transformers is older than what a family, or a model of ours, was tried with."""
    import transformers
    from packaging.version import Version

    if Version(transformers.__version__) < Version(SINCE):
        raise InputError(
            f"{subject} is supported from transformers {SINCE} on, and this is {transformers.__version__}: "
            f"pip install 'transformers>={SINCE}'"
        )


def check_decoder(text, staged: bool, channels: int) -> None:
    """Refuse a decoder whose settings the seam does not know.

    Args:
        text: transformers' text model, with config, layers and rotary_emb.
        staged: whether its layers run stage by stage, on fewer tokens each.
        channels: how many channels mrope_section gives an axis to.

    Raises:
        InputError: an unknown rotary embedding or layer type; its name and the known ones are in the message. Or
            sections that are more or fewer channels than the half head has.
    """
    half = text.rotary_emb.inv_freq.numel()
    if channels != half:
        raise InputError(
            f"mrope_section has {channels} channels in all, but half a head has {half}: make its sum {half}"
        )
    _check("rope_type", [text.rotary_emb.rope_type], ROPE_TYPES)
    types = set(getattr(text.config, "layer_types", None) or ())
    if not types and getattr(text.config, "sliding_window", None) is not None:
        types = {"sliding_attention"}  # Mistral's name no types
    linear = not all(map(has_attention, text.layers))
    _check("layer type", sorted(types), [kind for kind in LAYER_TYPES if linear or kind != "linear_attention"])
    if staged and "sliding_attention" in types:
        raise InputError("layers with sliding attention cannot be compressed on entry: set use_sliding_window=False")


def turned_channels(text_config) -> int:
    """How many channels of half a head are turned."""
    head = getattr(text_config, "head_dim", None) or text_config.hidden_size // text_config.num_attention_heads
    return int(head * text_config.rope_parameters.get("partial_rotary_factor", 1.0)) // 2


def text_model(model):
    """The text model of a ...Model, whatever the family calls it."""
    return getattr(model, "language_model", None) or model.text_model


def check_layers(layers: Iterable, known: Mapping[str, str]) -> None:
    """Refuse decoder layers of classes that a family was not written for.

    Args:
        layers: of the text model. known: names of the family's decoder layers, and of the attention in each.

    Raises:
        InputError: an unknown layer or attention; its name and the known ones are in the message.
    """
    for layer in layers:
        layer = getattr(layer, "_orig_mod", layer)  # as torch.compile wraps it
        _check("decoder layer", [_name(layer, known)], known)
        own = known.values() if has_attention(layer) else LINEAR
        attention = layer.self_attn if has_attention(layer) else getattr(layer, "linear_attn", None)
        _check("attention", [_name(attention, own)], own)


def has_attention(layer) -> bool:
    """Whether a decoder layer attends to the tokens before; one with linear attention keeps a state of them."""
    return hasattr(layer, "self_attn")


def is_gated(attention) -> bool:
    """Whether a query's projection gives each head a gate beside it, by which what it hears is multiplied."""
    wide, heard = getattr(attention.q_proj, "out_features", None), getattr(attention.o_proj, "in_features", None)
    return wide is not None and heard is not None and wide == 2 * heard


def check_looked_at(layers: Sequence, methods: Iterable[Method]) -> None:
    """Raise InputError where a method looks at the attention of a decoder layer that has none."""
    for method in methods:
        for layer in method.layers if method.needs & LAYER_NEEDS else ():
            seen = layer - method.layer_before
            if not has_attention(layers[seen]):
                before = int(method.layer_before)
                others = [n for n in range(before, len(layers)) if has_attention(layers[n - before])]
                raise InputError(
                    f"{method.name} with layer={layer} looks at attention in layer {seen}, which is linear: "
                    f"give one of layer={others}"
                )


def check_tower(blocks: Iterable, known: Mapping[str, str]) -> None:
    """Refuse blocks of a vision tower whose attention a family was not written for, where a method looks into them.

    Args:
        blocks: those that are looked into. known: names of the family's blocks, and of the attention in each.

    Raises:
        InputError: an unknown block or attention; its name and the known ones are in the message.
    """
    for block in blocks:
        block = getattr(block, "_orig_mod", block)
        _check("block", [_name(block, known)], known, "vision tower")
        attention = block.attn if hasattr(block, "attn") else block.attention
        _check("attention", [_name(attention, known.values())], known.values(), "vision tower")


def check_beside_pvc(methods: Iterable[Method]) -> None:
    """Raise InputError where a method takes patches from a tower whose PVC modules compare each with the same patch of
    other frames."""
    for method in methods:
        if method.place == "tower" or (method.place == "pixels" and leave_after(method) != -1):
            remedy = "take a step at the input, or where the family has steps at the pixels, leave_after=-1"
            raise InputError(
                f"{method.name}: PVC's attention over frames inside this vision tower needs the patches of all frames, "
                f"of which this step leaves some out; {remedy}"
            )


def _name(module, known: Iterable[str]) -> str:
    """Of its class; of a class made from a known one (as fully_shard does), the known one's."""
    names = [base.__name__ for base in type(module).__mro__]
    return next((name for name in names if name in known), names[0])


def _check(what: str, names: Iterable[str], known: Iterable[str], part: str = "decoder") -> None:
    for name in names:
        if name not in known:
            raise InputError(f"{what} {name!r} of the {part} is not supported: supported are {', '.join(known)}")
