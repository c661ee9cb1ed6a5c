"""Utilities used by all other packages: reading users' files, untrusted text, paths, optional dependencies."""
