"""The one exception for what a user got wrong. Used everywhere."""


class UserError(Exception):
    """Something the user can mend: one sentence that says what is wrong, where, and what to do.

    The command line prints it without a traceback and exits with status 2. Our own mistakes are
    never a UserError; they are left to fail loudly.
    """
