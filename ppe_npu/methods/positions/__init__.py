"""Rules that choose which members lend a merged token their positions, one file for each rule.

    CompressionConfig.preset("ppe", members="spread")

To add a rule, add one file to this folder, with the name that it is registered under; there is no other list of rules.
See base.py for the contract, and entries.py for the tokens that a rule chooses from.
"""

from ppe_npu.methods.positions.base import Rule, register, rule_named, rule_names

__all__ = ["Rule", "register", "rule_named", "rule_names"]
