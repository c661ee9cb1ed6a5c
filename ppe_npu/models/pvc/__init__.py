"""PVC: progressive visual token compression (Yang et al., CVPR 2025, arXiv 2412.09613), on InternVL and Qwen2.5-VL.

Everything is a video: an image is one picture, shown several times. In the last blocks of the vision tower a patch
attends to the same patch of the frames before, so that a frame need only say what earlier ones did not; and a frame's
relative time shifts and scales what is attended to and what is projected, so that the showings of one picture can say
different things of it. Each frame then has 64 tokens.

The published model's code could not be read and its weights were not at hand: these are modules of our own after the
paper, to be trained. At the start their gates are 0 and the model is its base, bit for bit. No number of the paper is
claimed (docs/pvc.md).

    model = add_pvc(model, PVCConfig(blocks=6))                    # InternVL or Qwen2.5-VL, in place
    inputs = shown_repeatedly(model, inputs, 4)                    # images become videos of 4 frames
    model(**inputs)
    model.save_pretrained(folder); model = load_pvc(folder)
"""

from ppe_npu.models.pvc.config import PVCConfig
from ppe_npu.models.pvc.inputs import shown_repeatedly
from ppe_npu.models.pvc.install import add_pvc, load_pvc, model_class

__all__ = ["PVCConfig", "add_pvc", "load_pvc", "model_class", "shown_repeatedly"]
