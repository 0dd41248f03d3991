"""The server: wire formats, security, sockets."""
