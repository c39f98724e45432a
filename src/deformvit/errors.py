"""User-facing errors: the command prints them as one line, without a traceback."""


class UserError(ValueError):
    """Invalid input to the library; the message names the value and what was expected."""

    exit_code = 1
    """Exit status of the command."""


class DataError(UserError):
    """Images or labels cannot be read; the message names the file and what was expected."""


class UnreadableImage(DataError):
    """One image is damaged or missing; training skips a limited number of them (``data.max_unreadable``)."""


class DescriptionError(UserError):
    """What a file says of a model or a run is invalid; the message names the field, its value and what was expected."""
