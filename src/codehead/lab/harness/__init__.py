"""Tasks of lm-evaluation-harness on coded and stock checkpoints."""
