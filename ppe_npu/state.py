"""What later steps need to know of a compressed prompt; it travels with the KV cache."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class CacheState:
    """The places that a KV cache holds, for each stage: the layers before the first merge inside the LLM, and those
    from each merge on.

    Args:
        masks: of each stage [B, L] bool, True at the cached places that hold a token.
        following: of each stage [B] int64, the position of the next token.
        padded: of each stage, whether its mask may have a False; known on the host.
        seen: columns of input_ids (padding among them) that the cache stands for, before compression.
        decoded: places since the last that was compressed; only these can be taken off.
    """

    masks: tuple[torch.Tensor, ...]
    following: tuple[torch.Tensor, ...]
    padded: tuple[bool, ...]
    seen: int = 0
    decoded: int = 0

    @classmethod
    def empty(cls, stages: int, batch: int, device: torch.device) -> "CacheState":
        """Before the first token."""
        mask = torch.zeros(batch, 0, dtype=torch.bool, device=device)
        following = torch.zeros(batch, dtype=torch.long, device=device)
        return cls((mask,) * stages, (following,) * stages, (False,) * stages)

    @property
    def lengths(self) -> tuple[int, ...]:
        """Cached places of each stage."""
        return tuple(mask.shape[1] for mask in self.masks)

    def then(
        self,
        new: tuple[torch.Tensor, ...],
        following: tuple[torch.Tensor, ...],
        padded: tuple[bool, ...],
        seen: int,
        compressed: bool,
    ) -> "CacheState":
        """This prompt continued by new places, of each stage [B, N] bool."""
        masks = tuple(torch.cat(pair, dim=1) for pair in zip(self.masks, new))
        decoded = 0 if compressed else self.decoded + new[0].shape[1]
        padded = tuple(before or after for before, after in zip(self.padded, padded))
        return CacheState(masks, following, padded, self.seen + seen, decoded)

    def cropped(self, stage: int, length: int) -> "CacheState":
        """After a stage's layers were cut to `length` places, as assisted decoding does with rejected tokens.

        Raises:
            ValueError: a part of the compressed prompt was cut off, or the cache is longer than this state.
        """
        whole = self.lengths[stage]
        removed = whole - length
        if removed == 0:
            return self
        if removed < 0 or removed > self.decoded:
            raise ValueError(
                f"past_key_values hold {length} places, the compressed prompt {whole - self.decoded} and all that was "
                f"decoded {whole}: only decoded tokens can be cut off a compressed cache"
            )
        masks = tuple(mask[:, : mask.shape[1] - removed] for mask in self.masks)
        cut = self.masks[0][:, -removed:].sum(1)
        following = tuple(position - cut for position in self.following)
        return CacheState(masks, following, self.padded, self.seen - removed, self.decoded - removed)
