"""From a configuration file to a trained checkpoint: data, adaptation, transformers' Trainer."""
