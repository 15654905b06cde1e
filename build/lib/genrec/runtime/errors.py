"""The exception for errors caused by user input."""


class UserError(Exception):
    """An error that the user can fix: its one-line message names the flag or file, the value and the fix."""
