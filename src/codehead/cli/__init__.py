"""The `codehead` command: commands parse, call and print, heavy imports inside the functions."""
