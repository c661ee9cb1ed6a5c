"""PVC on InternVL: the classes that a model and its parts are changed to (see install.py)."""

import math
from collections.abc import Sequence

import torch
from transformers import InternVLForConditionalGeneration
from transformers.models.internvl import modeling_internvl as base

from ppe_npu.errors import InputError
from ppe_npu.models.pvc.config import PVCConfig
from ppe_npu.models.pvc.modules import Frames, TemporalAttention, TimeEmbedding, TimeNorm, Timing

TimeSteps = Sequence[tuple[int, int]]


class PVCInternVLLayer(base.InternVLVisionLayer):
    """A block with attention over time between its attention over the picture and its MLP."""

    temporal: TemporalAttention

    def forward(self, hidden_states: torch.Tensor, timing: Timing | None = None) -> torch.Tensor:
        attended, _ = self.attention(self.layernorm_before(hidden_states))
        hidden_states = self.lambda_1 * attended + hidden_states
        if timing is not None:
            hidden_states = self.temporal(hidden_states, timing)
        output = self.dropout(self.mlp(self.layernorm_after(hidden_states)))
        return self.lambda_2 * output + hidden_states


class PVCInternVLEncoder(base.InternVLVisionEncoder):
    timing: Timing | None = None

    def forward(self, hidden_states: torch.Tensor):
        for layer in self.layer:
            timed = (self.timing,) if isinstance(layer, PVCInternVLLayer) else ()
            hidden_states = layer(hidden_states, *timed)
        return base.BaseModelOutput(last_hidden_state=hidden_states)  # type: ignore[arg-type]


class PVCInternVLProjector(base.InternVLMultiModalProjector):
    time_norm: TimeNorm
    timing: Timing | None = None

    def forward(self, image_features: torch.Tensor) -> torch.Tensor:
        hidden = self.layer_norm(image_features)
        if self.timing is not None:
            hidden = self.time_norm(hidden, self.timing.time)
        return self.linear_2(self.act(self.linear_1(hidden)))


class PVCInternVLModel(base.InternVLModel):
    time_embedding: TimeEmbedding

    def get_image_features(
        self,
        pixel_values: torch.Tensor,
        vision_feature_layer: int | list[int] | None = None,
        vision_feature_select_strategy: str | None = None,
        time_steps: TimeSteps | None = None,
        **kwargs,
    ):
        """time_steps: (steps, tiles) of every image and video, whose rows of pixel_values are the tiles of its first
        step, then of its second, ...; None: every row is a picture shown once."""
        steps = [(1, len(pixel_values))] if time_steps is None else [(int(t), int(n)) for t, n in time_steps]
        frames = Frames.of(steps)
        if frames.count != len(pixel_values):
            raise InputError(
                f"time_steps sum to {frames.count} tiles, but pixel_values has {len(pixel_values)}: give both as "
                "shown_repeatedly() returned them"
            )
        timing = Timing.of(frames, self.time_embedding, pixel_values)
        timed = (self.vision_tower.encoder, self.multi_modal_projector)
        try:
            for module in timed:
                module.timing = timing
            return super().get_image_features(
                pixel_values=pixel_values,
                vision_feature_layer=vision_feature_layer,
                vision_feature_select_strategy=vision_feature_select_strategy,
                **kwargs,
            )
        finally:
            for module in timed:
                del module.timing

    def forward(self, input_ids=None, pixel_values=None, time_steps=None, **kwargs):
        if pixel_values is not None and kwargs.get("mm_encoder_outputs") is None:
            names = ("vision_feature_layer", "vision_feature_select_strategy")
            others = {name: kwargs[name] for name in names if kwargs.get(name) is not None}
            made = self.get_image_features(pixel_values, **others, time_steps=time_steps, return_dict=True)
            kwargs["mm_encoder_outputs"] = {"image": made}
        return super().forward(input_ids=input_ids, **kwargs)


class PVCInternVLForConditionalGeneration(InternVLForConditionalGeneration):
    """InternVL with PVC's modules; time_steps: as in PVCInternVLModel.get_image_features()."""

    def __init__(self, config):
        super().__init__(config)
        equip(self, PVCConfig(**config.pvc))

    def forward(
        self,
        input_ids=None,
        pixel_values=None,
        attention_mask=None,
        position_ids=None,
        past_key_values=None,
        inputs_embeds=None,
        labels=None,
        logits_to_keep=0,
        mm_encoder_outputs=None,
        time_steps=None,
        **kwargs,
    ):
        given = {"attention_mask": attention_mask, "position_ids": position_ids, "past_key_values": past_key_values}
        given |= {"inputs_embeds": inputs_embeds, "labels": labels, "logits_to_keep": logits_to_keep}
        given |= {"mm_encoder_outputs": mm_encoder_outputs}  # a named parameter: generate() then makes it before beams
        return super().forward(input_ids, pixel_values, **given, time_steps=time_steps, **kwargs)


def equip(model, pvc: PVCConfig) -> None:
    """Change a model and its parts to the classes above, and add PVC's modules."""
    inner, vision = model.model, model.config.vision_config
    layers = inner.vision_tower.encoder.layer
    if pvc.blocks > len(layers):
        raise InputError(f"pvc's blocks={pvc.blocks}: the vision tower has {len(layers)} blocks; give at most as many")
    if pvc.internvl_shuffle not in (0, _shuffle_of(model.config)):
        inner.multi_modal_projector = _coarser(model.config, inner.multi_modal_projector, pvc.internvl_shuffle)
    model.__class__, inner.__class__ = PVCInternVLForConditionalGeneration, PVCInternVLModel
    inner.vision_tower.encoder.__class__ = PVCInternVLEncoder
    inner.multi_modal_projector.__class__ = PVCInternVLProjector
    inner.time_embedding = TimeEmbedding(pvc.time_width)
    for layer in layers[len(layers) - pvc.blocks :]:
        layer.__class__ = PVCInternVLLayer
        heads = pvc.heads or vision.num_attention_heads
        layer.temporal = TemporalAttention(vision.hidden_size, heads, pvc.time_width, vision.layer_norm_eps)
    width = inner.multi_modal_projector.layer_norm.normalized_shape[0]
    inner.multi_modal_projector.time_norm = TimeNorm(width, pvc.time_width)


def tile_tokens(config, shuffle: int) -> int:
    """How many tokens a tile has if shuffle x shuffle patches form one."""
    return math.prod(side // patch // shuffle for side, patch in _sides(config))


def _sides(config) -> list[tuple[int, int]]:
    return list(zip(config.vision_config.image_size, config.vision_config.patch_size))


def _shuffle_of(config) -> int:
    return round(1 / config.downsample_ratio)


def _coarser(config, old: base.InternVLMultiModalProjector, shuffle: int) -> base.InternVLMultiModalProjector:
    """A projector for shuffle x shuffle patches; the config is changed accordingly. Initially it computes what the
    base's does for the mean of its smaller squares, but with a norm over all of them: near the base, not the base."""
    own, width = _shuffle_of(config), config.vision_config.hidden_size
    if shuffle % own or any(side // patch % shuffle for side, patch in _sides(config)):
        patches = " x ".join(str(side // patch) for side, patch in _sides(config))
        raise InputError(
            f"pvc's internvl_shuffle={shuffle}: give a multiple of the base's {own} that divides its {patches} patches"
        )
    times = shuffle // own
    config.downsample_ratio, config.image_seq_length = 1 / shuffle, tile_tokens(config, shuffle)
    new = base.InternVLMultiModalProjector(config)

    def tiled(values: torch.Tensor) -> torch.Tensor:
        squares = values.unflatten(-1, (own, own, width))  # in pixel_shuffle's order of a token's patches
        return squares.repeat(*[1] * (values.dim() - 1), times, times, 1).flatten(-3)

    with torch.no_grad():
        new.layer_norm.weight.copy_(tiled(old.layer_norm.weight))
        new.layer_norm.bias.copy_(tiled(old.layer_norm.bias))
        new.linear_1.weight.copy_(tiled(old.linear_1.weight) / times**2)
        new.linear_1.bias.copy_(old.linear_1.bias)
    new.linear_2 = old.linear_2
    return new
