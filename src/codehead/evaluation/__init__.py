"""What a decision layer reaches and what it costs: accuracy, likelihood, sizes, speed, the result file."""
