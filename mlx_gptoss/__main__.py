"""`python -m mlx_gptoss`: the same as the command."""

from mlx_gptoss.cli import main

if __name__ == "__main__":
    main()
