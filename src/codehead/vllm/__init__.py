"""The plug-in for vLLM: coded and screened checkpoints are served from the folder that transformers loads.

vLLM finds `plugin` by its entry point in every process that it starts; `requests` knows when some tokens are enough.
Nothing else of codehead imports vLLM.
"""
