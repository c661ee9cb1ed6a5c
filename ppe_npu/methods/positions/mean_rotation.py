"""The mean of what the members' keys would be: to the first order what a query gets of all of them.

A query's score with a key at place p is linear in the rotation by p. So the mean score over a group whose members are
alike is the score with the mean of their rotations: at each frequency a shorter arrow where the members are far apart,
which is how a frequency says that it cannot tell where the group is.
"""

from ppe_npu.methods.positions.base import MEAN, register
from ppe_npu.methods.positions.spread import Spread


@register("mean_rotation")
class MeanRotation(Spread):
    """All channels are turned by the mean of the rotations of k spread members, which is shorter the farther apart."""

    table = MEAN
