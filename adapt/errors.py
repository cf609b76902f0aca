"""The one exception for a user's mistake."""


class Refusal(ValueError):
    """Input that is refused, in one line that names the value and the remedy.

    Recipes print the line and exit with status 2; every other exception is a defect and keeps its traceback.
    """
