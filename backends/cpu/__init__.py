"""Faster ways for a CPU, where the host may look at what was computed."""
