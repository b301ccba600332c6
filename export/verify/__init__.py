"""Verification of a bundle against the network that was trained."""
