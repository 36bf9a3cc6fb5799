"""The same answers, faster: a code ranks all tokens, and the rows of the old head score the best of them.

`build` gives a model its screen; `transform_coding` makes the code, `calibration` measures how much of it a step needs,
and `head` computes only the logits of its candidates.
"""
