"""The old name of ppe_npu.checkpoints.loading."""

import sys

from ppe_npu.checkpoints import loading

sys.modules[__name__] = loading
