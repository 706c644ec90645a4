"""Hostile calls of every op that the package registers with the dispatcher: `python -m tests.fuzz --help`.

The ops are enumerated from the dispatcher, so that a new one cannot be forgotten. A case is an op and a seed, and the
same two always make the same call. It is a problem that the op must take (`valid_*.py`), the same in another memory
layout, a problem with some arguments spoiled, or arguments drawn from the schema alone. Cases run in child processes:
what kills a child, or holds it for too long, is laid at the door of the case it was at.
"""
