"""Problems of a recipe, all of them at once and before anything runs."""

from typing import Any

from compress.recipe.partial import concerns, mend
from compress.recipe.schema import Recipe, check_shape
from compress.run.part_checks import check_parts, check_relations
from compress.run.place_checks import check_places
from compress.run.stages import StageTable


def check_values(values: dict[str, Any], stages: StageTable) -> tuple[Recipe | None, list[str]]:
    """A recipe's plain values as a recipe, and all their problems.

    Where a part has the wrong shape the recipe is None, and the other parts are checked all the
    same. This is the one place where a recipe is validated.
    """
    recipe, problems = check_shape(values)
    if recipe is not None:
        problems = [*check_recipe(recipe, stages), *check_places(recipe)]
        return recipe, list(dict.fromkeys(problems))
    rest, places = mend(values)
    if rest is not None:
        others = (*check_parts(rest, stages), *check_places(rest))
        problems += [problem for problem in others if not concerns(problem, places)]
    return None, list(dict.fromkeys(problems))


def check_recipe(recipe: Recipe, stages: StageTable) -> list[str]:
    """Problems of names, arguments and files; opens no data and builds no network."""
    return list(dict.fromkeys([*check_parts(recipe, stages), *check_relations(recipe)]))
