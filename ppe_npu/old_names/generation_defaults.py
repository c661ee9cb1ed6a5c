"""The old name of ppe_npu.checkpoints.generation_defaults."""

import sys

from ppe_npu.checkpoints import generation_defaults

sys.modules[__name__] = generation_defaults
