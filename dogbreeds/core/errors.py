"""Errors that a user can fix."""


class UserError(ValueError):
    """Error that the user can fix. Its message states what was received, what is allowed, and what to type.

    Examples:
        >>> try:
        ...     db.compose(["head=linaer"])
        ... except db.UserError as error:
        ...     print(error)
        head=linaer is not an option. head must be one of batchnorm, linear, logistic, mlp. Type head=linear.
    """


class MissingFileError(FileNotFoundError):
    """A file or folder given by the user does not exist. Its message has the same parts as that of `UserError`.

    Examples:
        >>> try:
        ...     db.load("networks/best.keras")
        ... except db.MissingFileError as error:
        ...     print(str(error).split(". ")[0])
        run=networks/best.keras is not a file
    """
