"""The old name of ppe_npu.evaluation.decoding."""

import sys

from ppe_npu.evaluation import decoding

sys.modules[__name__] = decoding
