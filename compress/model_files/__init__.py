"""Self-describing model files, plain checkpoints and where encoders come from."""
