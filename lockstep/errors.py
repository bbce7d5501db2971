"""What a user can mend."""


class UserError(Exception):
    """A mistake in what was given: one line that says what was wrong, where, and what to do."""
