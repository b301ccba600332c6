"""The tasks that networks are trained for and evaluated on."""

from compress.tasks.classification import Classification

__all__ = ["Classification"]
