"""Turn a large vision model into a small one that can be shipped, and prove it."""

__version__ = "0.1.0"
