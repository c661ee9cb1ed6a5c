"""Folders of checkpoints: what their files may ask for, and models and processors made of them."""
