"""The tasks that networks are trained for and evaluated on."""

from compress.tasks.classification import Classification
from compress.tasks.task import Task

__all__ = ["Classification", "Task"]
