"""The old name of ppe_npu.utils.reading."""

import sys

from ppe_npu.utils import reading

sys.modules[__name__] = reading
