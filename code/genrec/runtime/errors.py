"""The exception for mistakes of the user."""


class UserError(Exception):
    """A mistake that the user can mend: one line that names the flag or file, the value and the fix."""
