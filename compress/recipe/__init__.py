"""Recipes: schema, YAML files, command line."""
