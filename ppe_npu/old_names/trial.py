"""The old name of ppe_npu.checkpoints.trial."""

import sys

from ppe_npu.checkpoints import trial

sys.modules[__name__] = trial
