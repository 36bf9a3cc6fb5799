"""The lab: protocols, reports, baselines, scores of answers, the demo. It imports the library, never the reverse."""
