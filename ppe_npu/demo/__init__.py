"""The embedded demo: coloured figures on a grid, a tiny Qwen2.5-VL that reads them, and its training in minutes."""
