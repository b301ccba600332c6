"""Networks from a user's own code: `package.module:callable` or `path/to/file.py:callable`.

A recipe that names code runs it. A model file that names code is another matter: whoever sent the
file chose the code, so it runs only where the user trusts it, and only while it is still the code
that the model was trained with.
"""

import hashlib
import importlib
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from compress.errors import UserError, nearest

# Kinds of models that `models.PREFIXES` finds; these are also modules, but no code of a user's.
LIBRARIES = ("torchvision", "timm")

# Names that a recipe of this process gave, or "*" after --trust-code.
_trusted: set[str] = set()


def is_user_code(name: str) -> bool:
    """Whether a model's name has the form of a user's own code."""
    place, colon, attribute = name.partition(":")
    if not colon or place in LIBRARIES or not attribute.isidentifier():
        return False
    parts = place.split(".")
    is_module = all(p.isidentifier() for p in parts) and importlib.util.find_spec(parts[0])
    return place.endswith(".py") or bool(is_module)


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
    found: Callable[..., nn.Module] = builder
    return found


def provenance(name: str) -> dict[str, str]:
    """Where the code of a name lies and the SHA-256 of its file."""
    path = _file(name.partition(":")[0])
    return {"file": str(path), "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}


def verify(name: str, recorded: dict[str, str], origin: Path) -> None:
    """Refuse code that is not trusted, or no longer what the model at `origin` was made with."""
    if name not in _trusted and "*" not in _trusted:
        raise UserError(
            f"{origin} is built by code of its own, '{name}' ({recorded['file']}); read that code, "
            "and run again with --trust-code if you trust it"
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
        path = Path(place)
        if not path.is_file():
            raise UserError(f"'{place}' not found (looked in {Path.cwd()})")
        return path
    spec = importlib.util.find_spec(place)
    if spec is None or spec.origin is None:
        raise UserError(f"module '{place}' not found; is its folder on PYTHONPATH?")
    return Path(spec.origin)


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


def built(builder: Callable[..., nn.Module], name: str, **arguments: Any) -> nn.Module:
    """Call a user's builder, naming it where it does not do what it must."""
    try:
        network = builder(**arguments)
    except TypeError as error:
        raise UserError(f"{name} was called with {', '.join(arguments)}: {error}") from None
    if not isinstance(network, nn.Module):
        raise UserError(f"{name} returned a {type(network).__name__}; expected an nn.Module")
    return network
