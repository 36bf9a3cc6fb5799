"""Bits that see earlier bits: the head, what conditions its bits, the tree of codewords, and the search through it."""
