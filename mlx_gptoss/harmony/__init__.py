"""Harmony, the format gpt-oss speaks: vocabulary, rendering, history rules, parsing and constraints."""
