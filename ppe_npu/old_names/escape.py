"""The old name of ppe_npu.utils.escape."""

import sys

from ppe_npu.utils import escape

sys.modules[__name__] = escape
