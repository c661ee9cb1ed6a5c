"""What PVC's modules are made of; kept as `pvc` in a model's config.json."""

from dataclasses import asdict, dataclass

from ppe_npu.settings import check_fields, setting

SINUSOID = 256  # values that a frame's relative time becomes (the paper's)


@dataclass(frozen=True)
class PVCConfig:
    """The paper names neither blocks nor heads; these defaults are ours.

    Args:
        blocks: how many of the vision tower's last blocks attend over time.
        heads: of the attention over time; 0: as many as the block's own.
        time_width: of the embedding of a frame's relative time.
        internvl_shuffle: of how many patches on a side a token of InternVL is; 4 (the paper's) makes 64 tokens of a
            frame, where the released ones' 2 make 256. 0: as many as in its base; Qwen2.5-VL always has its own.
        showings: how often an image is shown (the paper's 4); what shown_repeatedly does where it is not told.
    """

    blocks: int = setting(6, least=1)
    heads: int = setting(0, least=0)
    time_width: int = setting(256, least=1)
    showings: int = setting(4, least=1)
    internvl_shuffle: int = setting(0, least=0)

    def __post_init__(self):
        check_fields(self, "PVC's")

    def as_dict(self) -> dict:
        return asdict(self)
