"""How the demo checkpoint was made: synthetic Harmony conversations, a torch gpt-oss, training and export."""
