"""The errors stqp raises on purpose; each knows the exit code of a command that ends with it."""


class StqpError(Exception):
    """Base of every error that stqp raises on purpose.

    The message is one sentence: what was expected, what was found, in which file, what to do.
    """

    exit_code = 1


class UsageError(StqpError):
    """Arguments that contradict each other or name something that is not there."""

    exit_code = 2


class InputError(StqpError):
    """A file or folder that does not hold what it should."""

    exit_code = 3


class EnvironmentProblem(StqpError):
    """The machine lacks something: a GPU, QuPath, disk space, a package."""

    exit_code = 4
