"""How tokens are grouped: one file a method, each a function of dpc_knn's arguments that gives a Grouping.

A new method is a new file and one line here; nothing behind a Grouping (features, positions, masks, labels, the
report) knows which method made it.
"""

from ppe_npu.methods.dpc_knn import dpc_knn

METHODS = {"dpc_knn": dpc_knn}
