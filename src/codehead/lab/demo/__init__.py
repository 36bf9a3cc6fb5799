"""The demo: a protocol of the catalogue on text that every Python installation carries."""
