"""Triton kernels for chains of operations that torch runs one by one. Importing them requires Triton.

Arithmetic is float32 in registers; the storage keeps its dtype: bfloat16, float16 or float32. No kernel
synchronizes and block sizes are fixed, so that a call can be captured in a CUDA graph after one warm-up call
(the first call with a shape compiles).
"""
