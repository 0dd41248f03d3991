"""The converter: sources, faults, mutated inputs."""
