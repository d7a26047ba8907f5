"""The errors that a user can mend: shown as one message without a traceback."""


class UserError(Exception):
    """A mistake in the input: names the flag or file, the value met and the remedy. Ends a script with exit code 2."""

    exit_code = 2


class TrainingStopped(UserError):
    """Training can't go on (losses that are not finite, a state that can't be saved). Exit code 1."""

    exit_code = 1
