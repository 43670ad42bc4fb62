"""The one error that is the user's to mend; the command line prints it and exits with 2."""


class SpratError(ValueError):
    """What was given, what was expected and the remedy, in the user's words."""
