"""Families that are like Qwen's in everything that compression depends on; each is an entry of FAMILIES.

Their images and videos are grids of patches, their positions have the axes t, h and w, and their numbering is Qwen's:
tests compare it with each family's own get_rope_index. Modifications: those of vision_language.py.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from ppe_npu.engine.compression import Compression
from ppe_npu.engine.positions import HALVES, NEIGHBOURS, contiguous_channels
from ppe_npu.engine.spans import VisionTokens
from ppe_npu.models import vision_language
from ppe_npu.models.arguments import IDLE, RUN, joined
from ppe_npu.models.known import check_release


@dataclass(frozen=True)
class GridFamily:
    """A family with the attributes that models/__init__.py requires.

    Args:
        CLASSES: names of the transformers classes. LAYERS: class names of decoder layers, and of the attention in each.
        PAIRS: which channels that attention rotates together, see engine.rotary.rotary_table.
        sections: the function that gives the axis of each channel from mrope_section.
        frames_apart: whether there is text between the frames of a video.
        staged: whether features of the vision tower enter the first decoder layers.
        one_placeholder: whether videos have the placeholder of images, and enter the tower frame by frame. A call then
            has either images or videos.
        seconds: the config's attribute for the temporal positions per second of video; None: one position per frame.
        run: called in the tower's place, if more than the tower makes the features, with the ...Model, pixels, grid_thw
            and return_dict. idle: returns 0 computed from all its parameters (see arguments.untouched_tower).
    """

    CLASSES: tuple[str, ...]
    LAYERS: dict[str, str]
    PAIRS: str = HALVES
    sections: Callable[..., tuple[int, ...]] = contiguous_channels
    frames_apart: bool = False
    staged: bool = False
    one_placeholder: bool = False
    seconds: str | None = None
    run: Callable[..., Any] | None = None
    idle: Callable[[Any], torch.Tensor] | None = None
    TOWER: ClassVar[dict[str, str]] = {}  # no method looks into these towers yet

    def vision_tokens(self, config) -> VisionTokens:
        vision = config.vision_config
        return VisionTokens(
            image_token_id=config.image_token_id,
            video_token_id=config.image_token_id if self.one_placeholder else config.video_token_id,
            merge_size=vision.spatial_merge_size,
            tokens_per_second=None if self.seconds is None else getattr(config, self.seconds),
            frames_apart=self.frames_apart,
            tower_frames=self.one_placeholder,
        )

    def channels(self, config) -> tuple[int, ...]:
        """The axis of each rotary channel of half a head."""
        return self.sections(config.text_config.rope_parameters["mrope_section"])

    def decoder_layers(self, config) -> int:
        return vision_language.decoder_layers(config)

    def install(self, model, compression: Compression) -> None:
        check_release(type(model).__name__)
        vision_language.install(model, compression, staged=self.staged)
        vars(model.model).update({name: own for name, own in ((RUN, self.run), (IDLE, self.idle)) if own is not None})

    def uninstall(self, model) -> None:
        vision_language.uninstall(model)
        for name in (RUN, IDLE):
            vars(model.model).pop(name, None)

    def detach(self, model) -> None:
        vision_language.detach(model)


def _with_projector(model, pixels: torch.Tensor, **kwargs):
    """PaddleOCR-VL's features come from its tower and a projector, which is not part of the tower."""
    return model.get_image_features(pixels, image_grid_thw=kwargs.pop("grid_thw"), **kwargs)


def _idle_with_projector(model) -> torch.Tensor:
    config, parameter = model.visual.config, next(model.visual.parameters())
    side, patch = config.spatial_merge_size, config.patch_size
    pixels = parameter.new_zeros(side * side, config.num_channels, patch, patch)
    grid = torch.tensor([[1, side, side]], device=parameter.device)
    return joined(_with_projector(model, pixels, grid_thw=grid, return_dict=True).pooler_output)[:0].sum()


_GLM: dict[str, Any] = {"frames_apart": True, "one_placeholder": True}
_GLM_TEXT = {"Glm4vTextDecoderLayer": "Glm4vTextAttention"}

FAMILIES = (
    GridFamily(("Glm4vForConditionalGeneration",), _GLM_TEXT, PAIRS=NEIGHBOURS, **_GLM),
    GridFamily(("Glm46VForConditionalGeneration",), _GLM_TEXT, PAIRS=NEIGHBOURS, **_GLM),
    GridFamily(
        ("Glm4vMoeForConditionalGeneration",),
        {"Glm4vMoeTextDecoderLayer": "Glm4vMoeTextAttention"},
        **_GLM,
    ),
    GridFamily(
        ("Qwen2_5OmniThinkerForConditionalGeneration",),
        {"Qwen2_5OmniDecoderLayer": "Qwen2_5OmniAttention"},
        seconds="position_id_per_seconds",
    ),
    GridFamily(
        ("PaddleOCRVLForConditionalGeneration",),
        {"PaddleOCRDecoderLayer": "PaddleOCRAttention"},
        run=_with_projector,
        idle=_idle_with_projector,
    ),
)
