"""Which members lend a merged token their positions: one file a rule.

    CompressionConfig.preset("ppe", members="spread")

A new rule is one new file in this folder, named as it is registered; no list names it anywhere else. See base.py, the
contract, and entries.py, what a rule chooses from.
"""

from ppe_npu.methods.positions.base import Rule, register, rule_named, rule_names

__all__ = ["Rule", "register", "rule_named", "rule_names"]
