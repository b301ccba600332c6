"""The bundle: what it holds and how it is written."""
