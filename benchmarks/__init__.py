"""Measurements: ratios in one run, against a named peer or the machine's ceiling."""
