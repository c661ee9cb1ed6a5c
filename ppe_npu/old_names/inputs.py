"""The old name of ppe_npu.data.inputs."""

import sys

from ppe_npu.data import inputs

sys.modules[__name__] = inputs
