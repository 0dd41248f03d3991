"""The server: HTTP on top of the façade; never imports mlx."""
