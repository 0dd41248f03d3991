"""What fits on a machine and how fast it will be, said before anything is loaded."""
