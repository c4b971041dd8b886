"""Kernels of the memory: C++ for the CPU, built once per machine where there is a compiler; Triton for the GPU."""
