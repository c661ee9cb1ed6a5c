"""CUDA, through flash-attn, Liger, and our own Triton kernels.

No package is imported before a call asks for it: Liger and flash-attn inside the functions that call them, Triton by
the modules of its kernels, which the registry imports when it first considers them. There is no autotuning:
block sizes follow from shapes and dtypes in plain Python, and tests/backends/compile_kernels.py compiles, without a
GPU, what would be launched for given shapes.
"""
