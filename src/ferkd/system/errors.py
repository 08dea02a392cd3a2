"""The one exception that the command line turns into a message instead of a traceback."""

from __future__ import annotations


class InputError(ValueError):
    """Bad usage, configuration or input (exit status 2).

    The message names the value, the rule it breaks and the remedy.
    """
