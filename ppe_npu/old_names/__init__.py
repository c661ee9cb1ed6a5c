"""Modules by their names of the first edition: ppe_npu.<name> is found here, and gives the module in its new place."""
