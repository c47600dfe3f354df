"""Errors that a user can fix: commands print them as one line, without a traceback."""


class UserError(ValueError):
    """A file, a setting, a flag or a request is invalid; the message names which one and why.

    Any other exception is a bug in the project, for example a plain `ValueError` about mismatched
    shapes. Commands show its traceback.
    """
