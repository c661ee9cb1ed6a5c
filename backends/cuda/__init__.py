"""CUDA: flash-attn, Liger, and Triton kernels of ours.

No package is imported before a call asks for it: Liger and flash-attn inside the functions that call them, Triton by
the modules of its kernels, which the registry imports when it first considers them. Nothing is tuned at run time: block
sizes follow from shapes and dtypes in plain Python, and tests/backends/compile_kernels.py compiles what would be
launched for given shapes, without a GPU.
"""
