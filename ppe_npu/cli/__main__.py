"""Entry point of `python -m ppe_npu.cli`, with which torchrun and DeepSpeed's launcher start the command line."""

import sys

from ppe_npu.cli import main

sys.exit(main())
