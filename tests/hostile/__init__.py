"""The small form of an attack with files from outside; `python -m tests.hostile N` runs a large."""
