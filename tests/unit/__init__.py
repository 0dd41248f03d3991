"""Everything else, one file a noun."""
