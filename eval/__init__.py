"""Transfer evaluations: how far the distilled encoder carries beyond its own test set."""
