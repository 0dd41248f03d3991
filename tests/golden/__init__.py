"""Outputs of other implementations, and the scripts that made them."""
