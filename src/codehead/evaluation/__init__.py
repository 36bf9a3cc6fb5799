"""What a model reaches and what it costs: metrics, sizes, the text it writes."""
