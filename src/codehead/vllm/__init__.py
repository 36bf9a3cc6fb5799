"""The plug-in for vLLM: serves coded and screened checkpoints from the folder that transformers loads.

vLLM finds `plugin` by its entry point in every process that it starts; `requests` knows when some tokens are enough.
Nothing else in codehead imports vLLM.
"""
