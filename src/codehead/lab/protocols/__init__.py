"""Protocols: a protocol is a committed file, a run is resumable, a report is rendered from results."""
