"""The exception that ends a command with exit code 2."""


class UserError(Exception):
    """Bad input. The message is one line: what is wrong, and what to do about it."""
