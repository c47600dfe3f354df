"""What a user can put right: commands show such an error as one line, without a traceback."""


class UserError(ValueError):
    """A file, a setting, a flag or a request breaks a rule; the message names the culprit.

    Any other exception, a plain `ValueError` of mismatched shapes among them, is a bug of the
    project, and commands let its traceback through.
    """
