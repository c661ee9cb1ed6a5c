"""What all families share in vLLM: merging visual tokens after the tower, and position rows for the decoder.

Modifications, by overriding methods that vLLM's runner calls on a model class:
* embed_multimodal: merges the items that the stock class has encoded, each by itself (engine/items.py), and appends
  their position rows to the features as trailing channels (serving/rows.py). So vLLM's encoder cache, chunked prompts
  and transfers between processes keep features and rows together.
* get_mrope_input_positions: the runner's three rows hold the positions of text and, for the tokens of an item, the
  position that the item counts from.
* embed_input_ids, forward: split the trailing channels off and place the rows, both in the same step. The model keeps
  no state of a request, so chunked prefill, prefix hits and preemption need no code here.
* rotary_emb of this instance's decoder layers: rotates by all rows, looked up once per step (serving/rotary.py).
* get_encoder_cudagraph_config: turns encoder graphs off, because they bypass embed_multimodal.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from ppe_npu.engine.items import Shape, check_items, merge_items
from ppe_npu.engine.spans import IMAGE, VIDEO, item_spans
from ppe_npu.errors import InputError
from ppe_npu.serving.asked import Asked
from ppe_npu.serving.cells import kept_patches, patches_kept, split_cells
from ppe_npu.serving.rotary import RowRotary, rotary_columns
from ppe_npu.serving.rows import placed_rows, prompt_line, split_rows, with_rows
from ppe_npu.serving.shapes import batches, fields_of, shapes_in, shapes_of
from ppe_npu.serving.vllm.processing import ASKED, CELLS, LONGER, compression_of, runs_of
from ppe_npu.serving.vllm.refusals import check_settings
from ppe_npu.serving.vllm.tower import run_on_kept

_PIXELS = {"pixel_values": IMAGE, "image_embeds": IMAGE, "pixel_values_videos": VIDEO, "video_embeds": VIDEO}


class CompressedModel:
    """A mixin that goes before vLLM's own class for conditional generation in the list of bases."""

    def __init__(self, *, vllm_config: Any, prefix: str = ""):
        compression = compression_of(vllm_config.model_config.hf_config)
        check_settings(vllm_config, compression)
        check_items(compression)
        super().__init__(vllm_config=vllm_config, prefix=prefix)
        self.compression, self.asked = compression, Asked(compression)
        self.shapes = shapes_of(vllm_config.model_config.hf_config, compression)
        self.rows = compression.axes * compression.config.k
        most = vllm_config.scheduler_config.max_num_batched_tokens
        self.encoded_at_once = vllm_config.scheduler_config.max_num_encoder_input_tokens  # tokens, before merging
        local = torch.zeros(self.rows, most, dtype=torch.long)
        self.register_buffer("local_rows", local, persistent=False)  # type: ignore[attr-defined]
        if not self.numbers_anew:
            self._install_rotary(vllm_config.model_config.hf_config.get_text_config(), most)

    @property
    def numbers_anew(self) -> bool:
        """Whether the compressed prompt is numbered 0, 1, 2, ..., so that merged tokens keep no positions."""
        return self.compression.config.positions == "renumber"

    def _install_rotary(self, text: Any, most: int) -> None:
        layers = self.language_model.model.layers  # type: ignore[attr-defined]
        # Layers of linear attention have no self_attn: they use no positions.
        attentions = [layer.self_attn for layer in layers if getattr(layer, "self_attn", None) is not None]
        stock = attentions[0].rotary_emb
        if any(attention.rotary_emb is not stock for attention in attentions):
            raise InputError("decoder layers with rotary embeddings of their own are not supported")
        table = _table(stock, LONGER * text.max_position_embeddings)
        self.rotary = RowRotary(table, self.compression.channels, self.rows, stock.head_size)
        # A buffer that is never reallocated, because CUDA graphs of the decoder read the same memory in every step.
        turns = table.new_zeros(most, 2 * table.shape[1])
        self.register_buffer("turns", turns, persistent=False)  # type: ignore[attr-defined]
        for attention in attentions:
            attention.rotary_emb = self.rotary

    # -- features, once per item ------------------------------------------------------------------------------------

    def embed_multimodal(self, **kwargs: Any) -> Any:
        """[kept, C (plus the channels that enter later layers) + 2 * rows] features of each item.

        vLLM's scheduler counts the kept tokens of an item, so it sends more items at once than it would send to the
        stock class. They are encoded in batches of the stock class's size, so that the tower needs no more memory.
        """
        cells, out = kwargs.pop(CELLS, None), []
        asked = {kind: kwargs.pop(name, None) for kind, name in ASKED.items()}
        for kind in dict.fromkeys(_PIXELS[key] for key in kwargs if key in _PIXELS):
            own = {key: kwargs[key] for key in kwargs if _is_of_images(key) == (kind == IMAGE)}
            shapes, vision = shapes_in(self.shapes, kind, own), self.compression.vision
            assert shapes is not None, "what has pixels has a shape"
            tokens = [sum(span.tokens for span in item_spans(kind, shape, 1.0, vision)) for shape in shapes]
            rows, sources = list(map(self.shapes.rows, shapes, tokens)), None
            if kind == IMAGE and cells is not None:
                sources = split_cells(cells, shapes, vision.merge_size)
                rows = [(patches, 0) for patches in patches_kept(sources, vision.merge_size)]
                tokens = [patches // vision.merge_size**2 for patches, _ in rows]
            for items in batches(tokens, self.encoded_at_once):
                some = fields_of(items, own, rows)
                those = None if sources is None else sources[items]
                out += self._embedded(kind, some, shapes[items], asked[kind][items], those)
        return tuple(out)

    def _embedded(
        self, kind: str, own: dict[str, Any], shapes: list[Shape], asked: Any, sources: Any
    ) -> list[torch.Tensor]:
        """As embed_multimodal(), for some items of one kind."""
        if sources is None:
            features = super().embed_multimodal(**own)  # type: ignore[misc]
        else:
            features = self._of_kept(own["pixel_values"], shapes, sources)
        return self._merged(kind, features, shapes, asked, own.get("second_per_grid_ts"), sources)

    def _of_kept(self, pixels: torch.Tensor, shapes: list[Shape], sources: list[np.ndarray]) -> Any:
        """[kept cells, C] tower output of each image; the tower gets only the patches of kept cells."""
        kept = kept_patches(sources, torch.tensor(shapes), self.compression.vision.merge_size)
        whole = run_on_kept(self.visual, pixels, kept)  # type: ignore[attr-defined]
        return whole.split([int((source == np.arange(len(source))).sum()) for source in sources])

    def _merged(
        self, kind: str, features: Any, shapes: list[Shape], asked: Any, seconds: Any, sources: Any
    ) -> list[torch.Tensor]:
        """The merged items, with their rows. Items with the same compression are merged in one call."""
        per_grid = [1.0] * len(shapes) if seconds is None else torch.as_tensor(seconds).flatten().tolist()
        wishes: dict[int, tuple[Any, list[int]]] = {}
        for item, sent in enumerate(asked):
            compression = self.asked.read(sent)
            wishes.setdefault(id(compression), (compression, []))[1].append(item)
        out: dict[int, torch.Tensor] = {}
        for compression, items in wishes.values():
            given = torch.cat([features[item] for item in items])
            parts = given.split(self.feature_width or given.shape[1], dim=1)
            grid, second = [shapes[item] for item in items], [per_grid[item] for item in items]
            source = None if sources is None else [sources[item] for item in items]
            merged = merge_items(compression, kind, parts[0], grid, second, parts[1:], source)
            for item, one in zip(items, merged):
                out[item] = with_rows(torch.cat([one.features, *one.deepstack], dim=1), one.rows)
        return [out[item] for item in range(len(shapes))]

    @property
    def feature_width(self) -> int | None:
        """Channels of an item's own features if channels for later layers follow them, else None."""
        return None

    def get_encoder_cudagraph_config(self) -> Any:
        """The stock config without modalities, so that no item is encoded by a graph."""
        config = super().get_encoder_cudagraph_config()  # type: ignore[misc]
        config.modalities = []
        return config

    # -- positions --------------------------------------------------------------------------------------------------

    def get_mrope_input_positions(self, input_tokens: list[int], mm_features: list[Any]) -> tuple[torch.Tensor, int]:
        """[3, N] int64 positions of the compressed prompt, and the offset from index to position after the prompt."""
        count = len(input_tokens)
        if self.numbers_anew:
            return torch.arange(count).expand(3, -1).contiguous(), 0
        items = []
        for feature in sorted(mm_features, key=lambda feature: feature.mm_position.offset):
            where, runs = feature.mm_position, runs_of(self.asked, self.shapes, feature.modality, feature.data)
            own = np.arange(where.length) if where.is_embed is None else np.flatnonzero(where.is_embed.numpy())
            items.append((where.offset + own, runs))
        line, following = prompt_line(count, items)
        return torch.from_numpy(line).expand(3, -1).contiguous(), following - count

    # -- each step --------------------------------------------------------------------------------------------------

    def embed_input_ids(
        self, input_ids: torch.Tensor, multimodal_embeddings: Any = None, *, is_multimodal: torch.Tensor | None = None
    ) -> torch.Tensor:
        """The embeddings of a step; stores the rows of its visual tokens for forward()."""
        given = multimodal_embeddings
        if given is not None and len(given):
            if is_multimodal is None:
                raise InputError("visual tokens come without is_multimodal: this release of vLLM is not supported")
            features, local = zip(*(split_rows(part, self.rows) for part in given))
            where = is_multimodal.nonzero()[:, 0].to(self.local_rows.device)
            self.local_rows[:, where] = torch.cat(local, dim=1)
            given = list(features)
        return super().embed_input_ids(input_ids, given, is_multimodal=is_multimodal)  # type: ignore[misc]

    def forward(
        self, input_ids: Any, positions: torch.Tensor, intermediate_tensors: Any = None, inputs_embeds: Any = None,
        **kwargs: Any,
    ) -> Any:  # fmt: skip
        """As the stock class. positions: [3, N] from the runner, or [N] for text only."""
        if not self.numbers_anew:
            line = positions[0] if positions.ndim == 2 else positions
            count = line.shape[0]
            turns = self.turns[:count]
            turns.copy_(self.rotary.turns(placed_rows(line, self.local_rows[:, :count])))
            positions = turns.T  # tokens last, as the layers pass positions on
        elif positions.ndim == 2 and self.compression.axes == 1:
            positions = positions[0]
        return super().forward(input_ids, positions, intermediate_tensors, inputs_embeds, **kwargs)  # type: ignore[misc]


def _is_of_images(key: str) -> bool:
    return key == "pixel_values" or key.startswith("image_")


def _table(stock: Any, positions: int) -> torch.Tensor:
    """The cos/sin table of one of vLLM's rotary modules, extended to at least `positions` rows.

    Raises:
        InputError: the module rotates neighbouring channels, or its table cannot be extended.
    """
    known = stock.cos_sin_cache
    if not stock.is_neox_style:
        raise InputError("a rotary embedding that rotates neighbouring channels is not supported")
    if len(known) >= positions:
        return known.clone()
    more = rotary_columns(stock._compute_inv_freq(stock.base), positions, getattr(stock, "mscale", 1.0))
    more = more.to(known.device, known.dtype)
    if not torch.equal(more[: len(known)], known):
        raise InputError(
            f"{type(stock).__name__} computes its table in an unknown way: its {len(known)} positions cannot be "
            f"extended to {positions}"
        )
    return more
