"""Nearest neighbours on a frozen encoder's features."""
