"""Several processes as one: collectives and batch norm over all of them."""
