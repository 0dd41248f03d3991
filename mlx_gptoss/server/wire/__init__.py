"""Wire formats: pure functions from each API's JSON to a ChatRequest, and from events back to its JSON."""
