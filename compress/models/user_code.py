"""Networks from a user's own code: `package.module:callable` or `path/to/file.py:callable`.

A recipe that names code runs it. A model file that names code is another matter: whoever sent the
file chose the code, so it runs only where the user trusts it, and only while it is still the code
that the model was trained with. Whether a file names code is decided by the name alone, and nothing
is imported to decide it.
"""

import hashlib
import importlib
import importlib.util
import os
import sys
from collections.abc import Callable, Mapping
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from compress.errors import UntrustedCode, UserError, nearest

# Kinds of models that `models.PREFIXES` finds; these are also modules, but no code of a user's.
LIBRARIES = ("torchvision", "timm")

# Names that a recipe of this process gave, or "*" after --trust-code.
_trusted: set[str] = set()


def is_user_code(name: str) -> bool:
    """True if a model's name has the form of a user's own code."""
    place, colon, attribute = name.partition(":")
    if not colon or place in LIBRARIES or not attribute.isidentifier():
        return False
    parts = place.split(".")
    is_module = all(part.isidentifier() for part in parts) and _spec(parts[0]) is not None
    return place.endswith(".py") or is_module


def needs_trust(name: str) -> bool:
    """True if a model file with this name may be built only after its code is trusted.

    Bare names are our own networks, `torchvision:` and `timm:` stand for a library's; anything else
    is code, whatever the file says of it. Nothing is looked up.
    """
    place, colon, _ = name.partition(":")
    return bool(colon) and place not in LIBRARIES


def trust(name: str) -> None:
    """Let model files of this process name this code; "*" is any code."""
    _trusted.add(name)


def find(name: str) -> Callable[..., nn.Module]:
    """The callable behind a name; it must take `num_classes` and return an `nn.Module`.

    Raises:
        UserError: there is no such file, module or callable, or importing it fails.
    """
    place, _, attribute = name.partition(":")
    module = _module(place)
    builder = getattr(module, attribute, None)
    if not callable(builder):
        known = [k for k, v in vars(module).items() if callable(v) and not k.startswith("_")]
        raise UserError(f"'{place}' has no callable '{attribute}'{nearest(attribute, known)}")
    checked: Callable[..., nn.Module] = builder
    return checked


def provenance(name: str) -> dict[str, str]:
    """Path and SHA-256 of the file that holds the code."""
    path = _file(name.partition(":")[0])
    return {"file": str(path), "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}


def verify(name: str, recorded: Mapping[str, str] | None, origin: Path) -> None:
    """Refuse code that is not trusted, or no longer what the model at `origin` was made with.

    Args:
        recorded: the `provenance` that the model file holds; None where it holds none.

    Raises:
        UntrustedCode: neither a recipe nor the user has named it.
        UserError: it is other code now, or the model file holds no digest of it.
    """
    place = f" ({recorded['file']})" if recorded else ""
    if name not in _trusted and "*" not in _trusted:
        raise UntrustedCode(
            f"{origin} is built by code of its own, '{name}'{place}; read that code, and run again "
            "with --trust-code if you trust it"
        )
    if recorded is None:
        raise UserError(
            f"{origin} names the code '{name}' but holds no SHA-256 of it ('code' is missing), so "
            "nobody can tell whether it is the code that the model was made with; train again"
        )
    now = provenance(name)
    if now["sha256"] != recorded["sha256"]:
        raise UserError(
            f"{origin} was made with '{name}' from {recorded['file']} (SHA-256 "
            f"{recorded['sha256'][:12]}), but {now['file']} now holds other code "
            f"({now['sha256'][:12]}); restore it, or train again"
        )


def _file(place: str) -> Path:
    if place.endswith(".py"):
        if not os.path.isfile(place):  # it says no to what is no path at all, too
            raise UserError(f"'{place}' not found (looked in {Path.cwd()})")
        return Path(place)
    spec = _spec(place)
    if spec is None or spec.origin is None or not spec.has_location:
        raise UserError(f"module '{place}' not found; is its folder on PYTHONPATH?")
    return Path(spec.origin)


def _spec(place: str) -> ModuleSpec | None:
    """The spec of a module; unlike `find_spec` this does not import the packages around it."""
    first, *rest = place.split(".")
    if not all(part.isidentifier() for part in (first, *rest)):
        return None
    try:
        spec = importlib.util.find_spec(first)
    except ValueError:  # a module that is running and has none, such as __main__
        return None
    for depth in range(len(rest)):
        if spec is None or spec.submodule_search_locations is None:
            return None
        name = ".".join([first, *rest[: depth + 1]])
        spec = PathFinder.find_spec(name, list(spec.submodule_search_locations))
    return spec


def _module(place: str) -> ModuleType:
    try:
        if not place.endswith(".py"):
            return importlib.import_module(place)
        path = _file(place).resolve()
        spec = importlib.util.spec_from_file_location(f"user_code_{path.stem}", path)
        if spec is None or spec.loader is None:
            raise UserError(f"'{place}' cannot be read as Python code")
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module  # dataclasses and pickling look there
        spec.loader.exec_module(module)
        return module
    except UserError:
        raise
    except Exception as error:  # whatever the user's own code raises
        kind = type(error).__name__
        raise UserError(f"importing '{place}' failed: {kind}: {error}") from None


def call_builder(builder: Callable[..., nn.Module], name: str, **arguments: Any) -> nn.Module:
    """Call a user's builder, naming it where it does not do what it must."""
    try:
        network = builder(**arguments)
    except UserError:
        raise
    except Exception as error:  # whatever a builder says of arguments that it does not take
        kind = "" if isinstance(error, TypeError) else f"{type(error).__name__}: "
        raise UserError(f"{name} was called with {', '.join(arguments)}: {kind}{error}") from error
    if not isinstance(network, nn.Module):
        raise UserError(f"{name} returned a {type(network).__name__}; expected an nn.Module")
    return network
