"""The shaders; read with importlib.resources."""
