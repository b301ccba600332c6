"""Encoders as detectron2 checkpoints."""
