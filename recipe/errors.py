"""The one exception that a person's mistake raises."""


class UserError(ValueError):
    """A mistake a person can mend: the message is one line saying what was wrong, where, and what to do.

    The command lines print it without a traceback and exit with code 2.
    """
