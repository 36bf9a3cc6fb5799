"""The quality and cost of a model: metrics, sizes, the text it writes."""
