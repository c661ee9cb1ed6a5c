"""python -m ppe_npu.cli.launch --nproc-per-node 8 -m ppe_npu.cli train ...: torchrun with failures reported in a line.

torchrun by itself prints a traceback of its own code below the line in which a command reports its error.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence


def main(argv: Sequence[str]) -> int:
    """Run torchrun with these arguments; returns the exit code of the process that failed first, else 0."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # torchrun would do the same, and print a long warning
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import main as torchrun

    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    try:
        torchrun(list(argv))
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        code = failure.exitcode
        how = f"was ended by signal {-code}" if code < 0 else f"ended with exit code {code}"
        print(f"ppe-npu: process {rank} {how}, so all others were stopped: see its output above", file=sys.stderr)
        return code if code > 0 else 128 - code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
