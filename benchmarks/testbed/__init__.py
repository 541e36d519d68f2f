"""A small native Mixture-of-Experts model, trained from scratch, that tells pruning methods apart.

Read in this order: `text`, `puzzles`, `passages` (what it learns), `mixture`, `network`, `train`
(how), `model`, `taskfiles` (what is written for users), `qualify` (what it is good for).
"""
