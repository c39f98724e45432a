"""The errors that a user can mend; the command prints them as one line."""


class UserError(ValueError):
    """Something given to the library does not fit; the message names it and what was expected."""
