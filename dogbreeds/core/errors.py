"""Errors that a user can put right."""


class UserError(ValueError):
    """Something the user can put right. Its text is what was received, what is allowed, and what to type."""


class MissingFileError(FileNotFoundError):
    """A file or folder that the user named and that is not there. Its text is as `UserError`'s."""
