"""Serves compressed models with engines that have their own model classes. Only an engine's subpackage imports it."""
