"""The configuration of PVC's modules, stored as `pvc` in a model's config.json."""

from dataclasses import asdict, dataclass

from ppe_npu.settings import check_fields, setting

SINUSOID = 256  # values that encode a frame's relative time (as in the paper)


@dataclass(frozen=True)
class PVCConfig:
    """Settings of PVC's modules. The paper states neither blocks nor heads; these defaults are our own.

    Args:
        blocks: how many of the vision tower's last blocks attend over time.
        heads: how many heads attend over time; 0: as many as the block's own attention has.
        time_width: the width of the embedding of a frame's relative time.
        internvl_shuffle: how many patches along each side form a token of InternVL: 4 (the paper's) gives 64 tokens per
            frame, 2 (of released InternVL models) gives 256. 0: as in the base model. Qwen2.5-VL always keeps its own.
        showings: how often an image is shown (4 in the paper); the default of shown_repeatedly().
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
