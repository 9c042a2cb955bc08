"""The one error class for everything a user can cause, and numbers in its messages."""


class UserError(ValueError):
    """One line that says what was wrong, what was expected and what to do.

    The command line prints it and exits with code 2; nodes let it through to the page.
    """


def counted(number: int, noun: str) -> str:
    """A number with its noun: "1 frame", "2 frames"."""
    return f"{number} {noun}{'' if number == 1 else 's'}"
