"""Command line: one file a command, built on the façade and on nothing below it."""
