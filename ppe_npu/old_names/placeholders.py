"""The old name of ppe_npu.data.placeholders."""

import sys

from ppe_npu.data import placeholders

sys.modules[__name__] = placeholders
