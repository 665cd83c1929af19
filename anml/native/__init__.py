"""Kernels in C++ for CPUs: optional, built at first use. `build.py` builds and loads them."""
