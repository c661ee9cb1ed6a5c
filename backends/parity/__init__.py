"""Do all implementations on this device agree with the specification?

from ppe_npu.backends.parity import format_table, run_parity
rows = run_parity(device)
print(format_table(rows))
failed = [row for row in rows if not row.ok]

cases.py     the inputs: odd shapes, batches, masks, grouped heads, packed segments, ragged frames
compare.py   the errors and how large they may be
run.py       every op x implementation x case x dtype, forward and gradients
"""

from .cases import CASES, Case
from .run import Row, format_table, run_parity

__all__ = ["CASES", "Case", "Row", "format_table", "run_parity"]
