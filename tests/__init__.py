"""Tests: behaviour at the edges, against oracles that nobody here wrote."""
