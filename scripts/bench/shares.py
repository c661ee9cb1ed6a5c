"""The cost of a request to a Qwen2.5-VL by formula, and the most that compression can reduce it.

Steps at the input do not change the tower's cost, so the larger the tower's share, the less they can gain on any
server. A step at the pixels reduces it, too. Linear layers and attention are counted (only pairs that attend; an
addition and a multiplication are two operations); norms and activations are not.

    python scripts/bench/shares.py --model FOLDER [--tokens 1024] [--kept 461] [--text 10] [--new-tokens 16]
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Widths:
    """Counts the operations of a Qwen2.5-VL from transformers' config."""

    config: Any

    def tower(self, patches: int, seen: int | None = None) -> int:
        """Operations for a picture of whole windows of patches, including the projection into the decoder.

        Args:
            seen: number of patches that the tower is given, if a step at the pixels drops the others evenly.
        """
        vision = self.config.vision_config
        seen, cell = patches if seen is None else seen, vision.spatial_merge_size**2
        width, values = vision.hidden_size, vision.in_channels * vision.temporal_patch_size * vision.patch_size**2
        block = 4 * width**2 + 3 * width * vision.intermediate_size
        window = (vision.window_size // vision.patch_size) ** 2 * seen / patches
        whole = len(vision.fullatt_block_indexes)
        pairs = seen * (whole * seen + (vision.depth - whole) * window)
        merger = (cell * width) ** 2 + cell * width * vision.out_hidden_size
        return round(2 * seen * (values * width + vision.depth * block + merger / cell) + 4 * pairs * width)

    @property
    def layers(self) -> int:
        """Operations per token in the decoder's linear layers."""
        text = self.config.text_config
        width = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
        attention = 2 * text.hidden_size * width * (text.num_attention_heads + text.num_key_value_heads)
        return 2 * text.num_hidden_layers * (attention + 3 * text.hidden_size * text.intermediate_size)

    def pairs(self, count: int) -> int:
        """Operations of `count` pairs of a query and a key in the attention of all layers."""
        text = self.config.text_config
        width = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
        return 4 * count * text.num_attention_heads * width * text.num_hidden_layers

    def prefill(self, tokens: int) -> int:
        """Operations of a prompt of this length in the decoder's layers."""
        return tokens * self.layers + self.pairs(tokens * (tokens + 1) // 2)

    @property
    def head(self) -> int:
        """Operations of the logits of one token."""
        return 2 * self.config.text_config.hidden_size * self.config.text_config.vocab_size

    def request(self, patches: int, tokens: int, new: int, seen: int | None = None) -> dict[str, int]:
        """Operations, by part, of a prompt of `tokens` tokens with one picture, and of `new` generated tokens."""
        places = sum(range(tokens + 1, tokens + new))
        decoding = (new - 1) * self.layers + self.pairs(places)
        parts = {"tower": self.tower(patches, seen), "prefill": self.prefill(tokens)}
        return parts | {"decoding": decoding, "head": new * self.head}


def main() -> int:
    from transformers import AutoConfig

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--tokens", type=int, default=1024, help="tokens of a picture: a quarter of its patches")
    parser.add_argument("--kept", type=int, default=461)
    parser.add_argument("--text", type=int, default=10, help="tokens of text")
    parser.add_argument("--new-tokens", type=int, default=16)
    asked = parser.parse_args()
    widths, patches = Widths(AutoConfig.from_pretrained(asked.model)), 4 * asked.tokens
    kept = asked.kept + asked.text
    dense = widths.request(patches, asked.tokens + asked.text, asked.new_tokens)
    print("| | tower | prefill | decoding | head | GFLOP in all | times cheaper |\n|---|---|---|---|---|---|---|")
    for name, parts in {
        "dense": dense,
        f"{asked.kept} kept at the input": widths.request(patches, kept, asked.new_tokens),
        f"{asked.kept} kept at the pixels": widths.request(patches, kept, asked.new_tokens, 4 * asked.kept),
    }.items():
        whole = sum(parts.values())
        shares = " | ".join(f"{part / whole:.1%}" for part in parts.values())
        print(f"| {name} | {shares} | {whole / 1e9:,.1f} | {sum(dense.values()) / whole:.2f} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
