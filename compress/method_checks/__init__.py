"""The contract that every method keeps, as checks that run on small networks.

`compress methods --test FILE:CLASS` runs them on a class of the user's own; the tests run them on
every method here. Nothing of a test framework is needed.
"""

from compress.method_checks.checks import CHECKS, Check, ContractError, Make
from compress.method_checks.subject import subject

__all__ = ["CHECKS", "Check", "ContractError", "Make", "subject"]
