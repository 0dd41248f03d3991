"""`mlx-gptoss bench`: prefill and decode measured against what the memory bus and the ALUs allow."""
