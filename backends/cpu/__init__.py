"""Faster implementations for CPUs, where the host may read computed values."""
