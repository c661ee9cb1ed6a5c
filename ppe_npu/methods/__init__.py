"""How tokens are grouped: one file a method, each a function (tokens, valid, budgets, max_groups, order) -> Grouping.

A new method is a new file and one line here; nothing behind a Grouping (features, positions, masks, labels, the
report) knows which method made it.
"""

from ppe_npu.methods.dpc_knn import dpc_knn

METHODS = {"dpc_knn": dpc_knn}
