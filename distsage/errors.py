"""The one exception for what a user got wrong, and how it quotes a file. Used everywhere."""


class UserError(Exception):
    """Something the user can mend: one sentence that says what is wrong, where, and what to do.

    The command line prints it without a traceback and exits with status 2. Our own mistakes are
    never a UserError; they are left to fail loudly.
    """


def shown(what: object) -> str:
    """Text of a file, or of a library about it, as a message quotes it: one line, not too long."""
    text = " ".join(str(what).split())
    return text if len(text) <= 500 else f"{text[:480]}..."
