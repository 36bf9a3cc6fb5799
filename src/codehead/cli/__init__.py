"""The `codehead` command: one file per command, no logic, heavy imports inside the functions."""
