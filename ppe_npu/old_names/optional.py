"""The old name of ppe_npu.utils.optional."""

import sys

from ppe_npu.utils import optional

sys.modules[__name__] = optional
