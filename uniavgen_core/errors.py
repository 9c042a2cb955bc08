"""The one error class for everything a user can cause."""


class UserError(ValueError):
    """One line that says what was wrong, what was expected and what to do.

    The command line prints it and exits with code 2; nodes let it through to the page.
    """
