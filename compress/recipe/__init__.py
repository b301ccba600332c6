"""Recipes: schema, YAML files, command line.

>>> from compress.recipe import Recipe, apply_override, parse_yaml
>>> values = parse_yaml('''
... data: {name: digits}
... teacher: {model: resnet14, train: {epochs: 2, lr: 0.05}}
... student: {model: resnet8}
... distill: {method: {name: at}, train: {epochs: 2, lr: 0.05}}
... ''', "mine.yaml")
>>> apply_override(values, "distill.train.epochs=3")
>>> recipe = Recipe.model_validate(values)
>>> recipe.distill.method.name, recipe.distill.train.epochs
('at', 3)

`compress.pipeline` checks such a recipe further, against the data and networks that it names.
"""

from compress.recipe.files import apply_override, load_resolved, read_yaml
from compress.recipe.schema import Named, Recipe, check_shape, describe_errors
from compress.recipe.yaml_values import parse_yaml

__all__ = [
    "Named",
    "Recipe",
    "apply_override",
    "check_shape",
    "describe_errors",
    "load_resolved",
    "parse_yaml",
    "read_yaml",
]
