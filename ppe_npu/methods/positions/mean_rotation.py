"""A rule that gives a merged token the mean of its members' rotations, and so, to first order, their mean score.

A query's score with a key at place p is linear in the rotation by p. So the mean score over a group whose members are
alike equals the score with the mean of their rotations. At each frequency this mean is shorter than 1 where members are
far apart: the frequency contributes less, because it cannot resolve where the group is.
"""

from ppe_npu.methods.positions.base import MEAN, register
from ppe_npu.methods.positions.spread import Spread


@register("mean_rotation")
class MeanRotation(Spread):
    """All channels are turned by the mean of the rotations of k spread members, which is shorter the farther apart."""

    table = MEAN
