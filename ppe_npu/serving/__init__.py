"""Serving compressed models by engines that have models of their own. Only a subpackage imports its engine."""
