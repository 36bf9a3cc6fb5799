"""The same answers, faster: a code ranks all tokens, and the rows of the old head score the best of them.

`screen` adds the code to a model and calibrates it; `transform_coding` makes it, `certificate` says when no other token
can win.
"""
