"""CUDA. Vendor packages are imported inside the functions that call them."""
