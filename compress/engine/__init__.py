"""The training loop, its optimisers, checkpoints, compiling and lockstep."""
