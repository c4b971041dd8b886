"""Compiled CPU kernels of the memory: C++ that is built once per machine where there is a compiler."""
