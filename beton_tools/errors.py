"""The one exception that ends a command with exit code 2."""


class UserError(Exception):
    """Bad input. The message is one line that says what is wrong and what to do about it."""
