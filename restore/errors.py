"""The errors that a user can cause, and so the ones that a user must be able to read."""


class RestoreError(ValueError):
    """Something in the user's hands is wrong: a file, an option, a recipe.

    The message is complete by itself: it names the file or the option and says what to do. Commands print
    it without a traceback and exit with status 1 or 2; library users may catch it as a ``ValueError``.
    """


class ImageError(RestoreError):
    """A file that cannot be read as an image, or an image that cannot be written as asked."""


class CheckpointError(RestoreError):
    """A weights file that is damaged, unknown, or does not fit the network it is loaded into."""
