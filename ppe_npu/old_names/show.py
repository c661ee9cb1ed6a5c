"""The old name of ppe_npu.inspect.show."""

import sys

from ppe_npu.inspect import show

sys.modules[__name__] = show
