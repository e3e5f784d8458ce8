"""The package's own errors: each message names what was given, what was expected and the likely fix."""


class PyroCgeError(Exception):
    """Parent of every error raised on purpose by this package."""


class DataError(PyroCgeError, ValueError):
    """Input data that cannot be used: the message names file, field and row."""


class ConfigError(PyroCgeError, ValueError):
    """A setting that does not exist or does not make sense."""


class CheckpointError(PyroCgeError, ValueError):
    """A checkpoint or weights file that cannot be read, or belongs to something else."""


class NonFiniteLossError(PyroCgeError, ArithmeticError):
    """The loss became NaN or infinite. ``site``, ``epoch`` and ``batch`` say where.

    The weights from before the failing step are still in the model when this is raised.
    """

    def __init__(self, message: str, *, site: str, epoch: int, batch: int) -> None:
        super().__init__(message)
        self.site, self.epoch, self.batch = site, epoch, batch
