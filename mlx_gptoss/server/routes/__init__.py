"""HTTP routes: thin handlers between the wire formats and the generation service."""
