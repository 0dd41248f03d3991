"""Kernels on the shader bench, and the bench itself."""
