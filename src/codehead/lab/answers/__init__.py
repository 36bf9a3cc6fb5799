"""Answers that a model generates, and their BERTScore."""
