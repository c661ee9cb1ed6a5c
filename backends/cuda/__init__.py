"""CUDA, through flash-attn, Liger, and our own Triton kernels.

No package is imported before a call needs it: Liger and flash-attn are imported in the functions that call them, Triton
in the modules of its kernels, which the registry imports when it first considers them. There is no autotuning: block
sizes follow from shapes and dtypes in plain Python, and tests/backends/compile_kernels.py compiles, without a GPU, the
kernels that would be launched for given shapes.
"""
