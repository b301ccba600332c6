"""The parts of a recipe that have the right shape, to be checked although others have not."""

import copy
from typing import Any

from pydantic import ValidationError

from compress.recipe.schema import Recipe
from compress.text import dotted

_ROUNDS = 10
_TRAIN = {"epochs": 1, "lr": 1.0}
# What stands in for a part that is required, by its key, or for an entry of the list at that key.
# Names are empty: whatever is said of a stand-in is left out. A batch of this size has room for
# every number of parts.
_STAND_INS: dict[str, Any] = {
    "data": {"name": ""},
    "teacher": {"model": "", "train": _TRAIN},
    "student": {"model": ""},
    "distill": {"method": "", "train": _TRAIN},
    "model": "",
    "method": "",
    "name": "",
    "task": "",
    "train": _TRAIN,
    "epochs": 1,
    "lr": 1.0,
    "batch_size": 1_000_000,
    "compare": "",
    "trackers": "",
    "transfer": {"task": "", "data": "", "train": _TRAIN},
}
# A named part is looked up by these; without them there is nothing to look up.
_LOOKED_UP = ("name", "task")


def mend(raw: dict[str, Any]) -> tuple[Recipe | None, list[str]]:
    """A recipe from what is right in `raw`, and the paths of what is left out of it.

    A wrong value is left out, or replaced where it is required; the recipe is None where that does
    not help.
    """
    content = copy.deepcopy(raw)
    if isinstance(content.get("teacher"), dict):
        content["teacher"] = [content["teacher"]]
    is_alone = content.get("teacher") != raw.get("teacher")
    places: list[str] = []
    for _ in range(_ROUNDS):
        try:
            return Recipe.model_validate(content), places
        except ValidationError as error:
            for item in error.errors():
                place = _leave_out(content, item["loc"], missing=item["type"] == "missing")
                if is_alone and place[:2] == ("teacher", 0):
                    place = ("teacher", *place[2:])
                places.append(dotted(*place))
    return None, places


def _leave_out(
    content: dict[str, Any], location: tuple[int | str, ...], *, missing: bool
) -> tuple[int | str, ...]:
    """Mend what an error points at; the path of what is no longer as it was given."""
    holders: list[Any] = [content]
    path: list[int | str] = []
    for key in location:
        if not _has(holders[-1], key):
            break
        holders.append(holders[-1][key])
        path.append(key)
    rest = location[len(path) :]
    if missing and len(rest) == 1 and rest[0] in _STAND_INS and isinstance(holders[-1], dict):
        path.append(rest[0])
    elif not path:
        return ()  # of the whole recipe
    else:
        holders.pop()
    holder, last = holders[-1], path[-1]
    named = path[-2] if isinstance(last, int) and len(path) > 1 else last
    if named in _STAND_INS:
        stand_in = copy.deepcopy(_STAND_INS[str(named)])
        holder[last] = [stand_in] if last == "teacher" else stand_in
        if last in ("compare", "trackers", "transfer"):
            del holder[last]
    else:
        del holder[last]
    return tuple(path[:-1] if last in _LOOKED_UP else path)


def _has(holder: Any, key: int | str) -> bool:
    if isinstance(holder, list):
        return isinstance(key, int) and key < len(holder)
    return isinstance(holder, dict) and key in holder


def concerns(problem: str, places: list[str]) -> bool:
    """Whether a problem is of one of these places, or of something inside it."""
    return any(problem.startswith((f"{place}:", f"{place}.")) for place in places)
