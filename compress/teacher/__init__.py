"""Frozen teachers: fast inference, int8, the cache of their outputs."""
