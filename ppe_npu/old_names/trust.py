"""The old name of ppe_npu.checkpoints.trust."""

import sys

from ppe_npu.checkpoints import trust

sys.modules[__name__] = trust
