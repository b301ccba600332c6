"""Semantic segmentation with the distilled encoder under a pyramid pooling head."""
