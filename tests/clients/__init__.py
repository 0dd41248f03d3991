"""Third-party clients against a real server on a real socket, in an environment of their own."""
