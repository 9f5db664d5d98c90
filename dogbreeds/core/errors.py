"""Errors that a user can fix."""


class UserError(ValueError):
    """Error that the user can fix. Its message states what was received, what is allowed, and what to type."""


class MissingFileError(FileNotFoundError):
    """A file or folder given by the user does not exist. Its message has the same parts as that of `UserError`."""
