"""The errors that a user can mend; the command prints them as one line."""


class UserError(ValueError):
    """Something given to the library does not fit; the message names it and what was expected."""

    exit_code = 1
    """What the command ends with."""


class DataError(UserError):
    """Images or labels cannot be read; the message names the file and what was expected."""


class UnreadableImage(DataError):
    """One image is damaged or not there; training passes over a limited number of them."""
