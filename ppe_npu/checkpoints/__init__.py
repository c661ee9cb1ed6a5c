"""Checkpoint folders: which requests of their files are refused, and loading of models and processors."""
