"""Plain, readable PyTorch: the specification of every op, and the fallback where nothing faster runs."""
