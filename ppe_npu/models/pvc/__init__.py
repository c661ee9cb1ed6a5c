"""PVC: progressive visual token compression (Yang et al., CVPR 2025, arXiv 2412.09613), on InternVL and Qwen2.5-VL.

Everything is a video: an image is one picture, shown several times. In the last blocks of the vision tower a patch
attends to the same patch of earlier frames, so that a frame need only encode what those did not; and a frame's relative
time shifts and scales the inputs of that attention and of the projector, so that the showings of one picture can encode
different things. Each frame then has 64 tokens.

The published model's code and weights were not available: these modules were written after the paper, and must be
trained. Initially their gates are 0 and the model equals its base, bit for bit. None of the paper's results are claimed
(docs/pvc.md).

    model = add_pvc(model, PVCConfig(blocks=6))                    # InternVL or Qwen2.5-VL, in place
    inputs = shown_repeatedly(model, inputs, 4)                    # images become videos of 4 frames
    model(**inputs)
    model.save_pretrained(folder); model = load_pvc(folder)
"""

from ppe_npu.models.pvc.config import PVCConfig
from ppe_npu.models.pvc.inputs import shown_repeatedly
from ppe_npu.models.pvc.install import add_pvc, load_pvc, model_class

__all__ = ["PVCConfig", "add_pvc", "load_pvc", "model_class", "shown_repeatedly"]
