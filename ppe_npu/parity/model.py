"""A tiny Qwen2.5-VL and a batch of prompts, drawn from a seed: what end-to-end parity is measured on."""

import torch

from ppe_npu import CompressionConfig
from ppe_npu.backends.common import IGNORED

IMAGE, VIDEO, WORDS = 60, 61, 60  # placeholder ids; text ids are below WORDS
PATCH = 4
SETTINGS = {
    "dense": CompressionConfig.preset("dense"),
    "chatunivi": CompressionConfig.preset("chatunivi"),
    "keep_one": CompressionConfig.preset("keep_one"),
    "ppe": CompressionConfig.preset("ppe", k=2),
    "ppe_cascade": CompressionConfig.preset("ppe_cascade", k=2, layers=[1, 2]),
}
# Each prompt: numbers of text tokens, and images and videos as (frames, height, width) in tokens.
_PROMPTS = ((2, (1, 4, 5), 3, (3, 3, 4), 4), (7,), (1, (1, 1, 1), 2, (1, 5, 3), 5))


def parity_model(seed: int = 0):
    """fp32 on the CPU: 1 vision block, 3 layers of width 64, 2 heads of 32 channels, about 0.1 M parameters."""
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    config = Qwen2_5_VLConfig(
        vision_config={
            "depth": 1, "hidden_size": 32, "num_heads": 2, "intermediate_size": 48, "out_hidden_size": 64,
            "patch_size": PATCH, "spatial_merge_size": 2, "temporal_patch_size": 2, "window_size": 16,
            "fullatt_block_indexes": [], "tokens_per_second": 1, "initializer_range": 0.2,
        },
        text_config={
            "vocab_size": 64, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3,
            "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 512,
            "rope_parameters": {"rope_type": "default", "rope_theta": 100.0, "mrope_section": [4, 6, 6]},
            "initializer_range": 0.15, "bos_token_id": None, "eos_token_id": None, "pad_token_id": 0,
        },
        image_token_id=IMAGE, video_token_id=VIDEO, vision_start_token_id=62, vision_end_token_id=63,
        tie_word_embeddings=False,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Qwen2_5_VLForConditionalGeneration(config).eval()


def parity_inputs(seed: int = 0) -> dict[str, torch.Tensor]:
    """Model inputs and labels (of all text) for three prompts, left-padded, fp32 on the CPU."""
    generator = torch.Generator().manual_seed(seed)
    rows, pixels, grids = [], {IMAGE: [], VIDEO: []}, {IMAGE: [], VIDEO: []}
    for parts in _PROMPTS:
        ids: list[int] = []
        for part in parts:
            if isinstance(part, int):
                ids += torch.randint(1, WORDS, (part,), generator=generator).tolist()
                continue
            token, count = IMAGE if part[0] == 1 else VIDEO, part[0] * part[1] * part[2]
            ids += [token] * count
            pixels[token].append(torch.randn(4 * count, 3 * 2 * PATCH * PATCH, generator=generator))
            grids[token].append([part[0], 2 * part[1], 2 * part[2]])
        rows.append(ids)
    length = max(len(ids) for ids in rows)
    inputs = {
        "input_ids": torch.tensor([[0] * (length - len(ids)) + ids for ids in rows]),
        "attention_mask": torch.tensor([[0] * (length - len(ids)) + [1] * len(ids) for ids in rows]),
        "pixel_values": torch.cat(pixels[IMAGE]),
        "image_grid_thw": torch.tensor(grids[IMAGE]),
        "pixel_values_videos": torch.cat(pixels[VIDEO]),
        "video_grid_thw": torch.tensor(grids[VIDEO]),
        "second_per_grid_ts": torch.ones(len(grids[VIDEO])),
    }
    real = inputs["attention_mask"] > 0
    predicted = torch.nn.functional.pad(real, (1, -1))  # tokens that do not follow padding
    text = (inputs["input_ids"] < WORDS) & real & predicted
    return inputs | {"labels": torch.where(text, inputs["input_ids"], IGNORED)}


@torch.no_grad()
def with_features(model, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The inputs with the vision tower's features in inputs_embeds, and without pixels.

    In 16 bits the towers of two devices differ by a rounding, so their groups may differ. With the features of one
    tower, the groups are the same everywhere, and everything after them can be compared.
    """
    embeds = model.get_input_embeddings()(inputs["input_ids"])
    for token, name in ((IMAGE, "image"), (VIDEO, "video")):
        pixels = inputs["pixel_values" if token == IMAGE else "pixel_values_videos"].to(embeds.dtype)
        features = model.model.visual(pixels, grid_thw=inputs[f"{name}_grid_thw"], return_dict=True).pooler_output
        embeds = embeds.masked_scatter((inputs["input_ids"] == token)[:, :, None], features)
    others = {name: value for name, value in inputs.items() if not name.startswith("pixel")}
    return others | {"inputs_embeds": embeds}
