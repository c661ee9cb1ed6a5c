"""Plain PyTorch, readable: the specification of every op, and what runs where nothing faster does."""
