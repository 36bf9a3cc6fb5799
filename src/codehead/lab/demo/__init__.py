"""The demo: the heads of the paper on text that every Python installation carries."""
