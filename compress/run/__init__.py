"""From a recipe to its results: checks, plan, fields, run directory, executor."""
