"""The one exception that speaks to the user."""


class UserError(Exception):
    """A mistake in what the user gave: one message, no traceback, exit code 2.

    The message says what was given, what was expected and what to do.
    """
