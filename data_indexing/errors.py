"""The one error that a user of this package can cause."""


class DataError(Exception):
    """What a user did wrong: one line that names the file, line or key, and the way out."""
