"""Pages that are generated where the documentation is built, so that they cannot be out of date.

reference/recipe.md     every key of a recipe, from its schema
reference/commands.md   every command's options, from its parser
reference/numbers.md    the definitions that each report holds
"""

import argparse
import inspect
from collections.abc import Iterator, Mapping
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

from compress.cli.verbs import GROUPS, SUMMARIES, Verb
from compress.pipeline import STAGES
from compress.reporting.glossary import DEFINITIONS
from compress.run.schema import schema

_SECTIONS = ("data", "teacher", "student", "distill", "engine", "fuse", "account", "export")
_PARTS = {
    "data": ("Data sets", "of `data`, beside the keys that every data set takes"),
    "method": ("Methods", "of `distill.method` and of entries of `distill.compare`"),
    "schedule": ("Schedules", "of `train.schedule`"),
    "transfer": ("Transfer tasks", "of an entry of `transfer`"),
    "tracker": ("Trackers", "of entries of `trackers`"),
}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages to those of the folder; called by mkdocs."""
    pages = {
        "reference/recipe.md": recipe_page(),
        "reference/commands.md": commands_page(),
        "reference/numbers.md": numbers_page(),
    }
    for name, text in pages.items():
        files.append(File.generated(config, name, content=text))
    return files


def recipe_page() -> str:
    """Every section of a recipe with its keys, and the arguments of every named part."""
    content = schema(STAGES)
    lines = [
        "# Keys of a recipe",
        "",
        "A recipe is one YAML mapping. A part with a `name` (a data set, a model, a method, a "
        "schedule) takes that part's own arguments beside it; a bare word is short for "
        "`{name: WORD}`. Unknown keys, wrong types and impossible values are all reported "
        "together before anything runs. `compress run --schema` prints this page as JSON schema.",
        "",
    ]
    lines += _table("The recipe", content, content)
    named = content["$defs"]
    for name, definition in named.items():
        lines += _table(name, definition, content)
    for kind, (title, where) in _PARTS.items():
        lines += [f"## {title}", "", f"Arguments {where}.", ""]
        for name, part in content["named_parts"][kind].items():
            lines += _arguments(name, part)
    return "\n".join(lines)


def _table(title: str, definition: Mapping[str, Any], content: Mapping[str, Any]) -> Iterator[str]:
    properties = definition.get("properties")
    if not properties:
        return
    yield f"## {title}"
    yield ""
    about = inspect.cleandoc(definition.get("description", ""))
    yield about
    yield ""
    yield "| key | type | default |"
    yield "|---|---|---|"
    required = definition.get("required", ())
    for key, value in properties.items():
        default = "required" if key in required else _code(value.get("default"))
        yield f"| `{key}` | {_type(value)} | {default} |"
    yield ""


def _arguments(name: str, part: Mapping[str, Any]) -> Iterator[str]:
    properties = part.get("properties") or {}
    if not properties:
        return
    yield f"### {name}"
    yield ""
    yield "| argument | type | default |"
    yield "|---|---|---|"
    for key, value in properties.items():
        default = "required" if key in part.get("required", ()) else _code(value.get("default"))
        yield f"| `{key}` | {_type(value)} | {default} |"
    yield ""


def _type(value: Mapping[str, Any]) -> str:
    """The type of a JSON schema in words."""
    if "$ref" in value:
        name = str(value["$ref"]).rpartition("/")[2]
        return f"[{name}](#{name.lower()})"
    if "enum" in value:
        return " or ".join(f"`{one}`" for one in value["enum"])
    if "const" in value:
        return f"`{value['const']}`"
    if "anyOf" in value:
        return " or ".join(dict.fromkeys(_type(one) for one in value["anyOf"]))
    kind = value.get("type", "anything")
    if kind == "array":
        items = value.get("items")
        return f"list of {_type(items)}" if isinstance(items, dict) else "list"
    bounds = [
        f"{sign} {value[key]:g}"
        for key, sign in (
            ("minimum", "≥"),
            ("exclusiveMinimum", ">"),
            ("maximum", "≤"),
        )
        if key in value and abs(value[key]) < 2**31 - 1
    ]
    return f"{kind} {', '.join(bounds)}".strip()


def _code(value: Any) -> str:
    if value is None:
        return "none"
    text = str(value).replace("|", "\\|")
    return f"`{text.lower() if isinstance(value, bool) else text}`"


def commands_page() -> str:
    """The help of every verb."""
    lines = [
        "# Commands",
        "",
        "`compress VERB --help` prints each of these. Every verb is also the command of a module: "
        "`compress run` is `python -m compress.pipeline`.",
        "",
    ]
    for heading, verbs in GROUPS.items():
        lines += [f"## {heading}", ""]
        for name, verb in verbs.items():
            if isinstance(verb, Verb):
                lines += _command(verb.build_parser())
                continue
            lines += [f"### compress {name}", "", f"{SUMMARIES[name].capitalize()}.", ""]
            for task in verb.values():
                lines += _command(task.build_parser(), level=4)
    return "\n".join(lines)


def _command(parser: argparse.ArgumentParser, level: int = 3) -> list[str]:
    parser.formatter_class = lambda prog: argparse.HelpFormatter(prog, width=96)
    return [f"{'#' * level} {parser.prog}", "", "```text", parser.format_help().rstrip(), "```", ""]


def numbers_page() -> str:
    """The definition of every number of a report."""
    lines = ["# Numbers", "", "What the numbers of a report are, as each report says itself.", ""]
    for term, text in DEFINITIONS:
        lines += [f"**{term}**", "", text, ""]
    return "\n".join(lines)
