"""Kernels: one typed function each, its plain-mx twin, and the back ends that run it."""
