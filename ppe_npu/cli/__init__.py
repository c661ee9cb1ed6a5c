"""ppe-npu train | data | merge-lora | export | eval | report | describe | parity | demo.

A user's mistake is one line on stderr and exit code 2; PPE_NPU_DEBUG=1 shows where it was raised. parser.py has all
options and imports little; each command's module is loaded when it runs.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib import import_module

from ppe_npu.cli.parser import build_parser
from ppe_npu.escape import printable

# `import torch` imports torch_npu, and fails with it, whatever the device.
_NO_CANN = (
    "torch cannot be imported, because torch_npu is installed and finds no CANN: on an Ascend machine source CANN's "
    "set_env.sh, anywhere else add EMULATE=1 to the make target; TORCH_DEVICE_BACKEND_AUTOLOAD=0 does without an NPU"
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code: 0, 1 (it ran and failed) or 2 (it was asked for something impossible)."""
    args = build_parser().parse_args(argv)
    module, _, function = args.run.partition(":")
    # Read when torch is loaded, below. By default torch's threads spin while they wait; on cores that are shared with
    # other work that cost a factor of 2 to 10 on the tiny model, and waiting asleep cost nothing that was measured.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        return getattr(import_module(f"{__name__}.{module}"), function)(args)
    except KeyboardInterrupt:
        print("ppe-npu: stopped", file=sys.stderr)
        return 130
    # InputError, DeviceError, a config's complaint; a missing package; a folder that cannot be written
    except (ValueError, ImportError, OSError) as error:
        return _complain(error, 2)
    except RuntimeError as error:
        if str(error).startswith("Failed to load the backend extension: torch_npu"):
            return _complain(RuntimeError(_NO_CANN), 2)
        from ppe_npu.errors import TrainingError

        if not isinstance(error, TrainingError):
            raise
        return _complain(error, 1)


def _complain(error: Exception, code: int) -> int:
    if os.environ.get("PPE_NPU_DEBUG"):
        raise error
    text = str(error)
    if text.startswith("Caught ") and "DataLoader worker" in text:  # torch puts the worker's traceback into the message
        text = text.strip().splitlines()[-1].partition(": ")[2]
    print(f"ppe-npu: error: {printable(' '.join(text.split()))}", file=sys.stderr)
    return code
