"""Compiled kernels for the CPU: C++ sources, their building, loading and calling."""
