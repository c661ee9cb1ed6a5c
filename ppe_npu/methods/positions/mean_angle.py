"""A rule that rotates by the direction of the members' mean rotation, at full length."""

from ppe_npu.methods.positions.base import MEAN_ANGLE, register
from ppe_npu.methods.positions.spread import Spread


@register("mean_angle")
class MeanAngle(Spread):
    """All channels are turned by the mean angle of k spread members: the direction of the mean of their rotations."""

    table = MEAN_ANGLE
