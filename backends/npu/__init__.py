"""Ascend NPU, through operators of torch_npu, imported in the functions that call them, and our own Triton kernels.

The clustering (dpc_knn.py and its passes) and row_mean.py are Triton kernels, which need triton-ascend; tiles.py plans
their tiles for the chips of chips.py. Tests compile and run them without a device (docs/npu.md says what it shows).

Each other file calls the operator and has a function `refusal`, which checks the documented limits as a pure function
of the arguments and runs on any device. Sources: op-plugin's operator pages (docs/zh/custom_APIs/torch_npu), torch_npu
2.13's docstrings and CANN's tiling code. The project has no Ascend machine: the calls are tested against a stand-in
that enforces the same documents (tests/backends/fake_torch_npu.py), so precision, speed and undocumented limits, which
only hardware shows, are not verified.
"""
