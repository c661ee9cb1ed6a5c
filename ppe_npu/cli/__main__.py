"""python -m ppe_npu.cli, as torchrun and DeepSpeed's launcher start it."""

import sys

from ppe_npu.cli import main

sys.exit(main())
