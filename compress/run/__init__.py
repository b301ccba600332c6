"""A recipe carried out: plan, checks, run directory, executor."""
