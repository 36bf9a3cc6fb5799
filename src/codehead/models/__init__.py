"""Decision layers in the causal language models of transformers: attach, detach, fold, checkpoints."""
