"""How tokens are grouped: one file a method.

METHODS look at features: each is a function of dpc_knn's arguments, on the device, that gives a Grouping. BLIND ones
look at places alone, so that the host knows their groups with the rest of the plan: each is a function of uniform's
arguments, for one cell. They are the controls that a method of the first kind has to beat.

A new method is a new file, one line here, and its name in ppe_npu.config; nothing behind a Grouping (features,
positions, masks, labels, the report) knows which method made it.
"""

from ppe_npu.methods.avg_pool import avg_pool
from ppe_npu.methods.dpc_knn import dpc_knn
from ppe_npu.methods.random import random
from ppe_npu.methods.uniform import uniform

METHODS = {"dpc_knn": dpc_knn}
BLIND = {"random": random, "uniform": uniform, "avg_pool": avg_pool}
