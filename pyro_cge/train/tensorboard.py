"""Learning curves in TensorBoard."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

from ..errors import ConfigError


class TensorBoardLog:
    """Writes each epoch's row of the history as TensorBoard scalars: ``fit(..., on_record=TensorBoardLog(folder))``.

    ``train_loss`` and ``valid_loss`` become ``loss/train`` and ``loss/valid``, one panel a term; ``grad_norm`` and
    ``seconds`` are panels of their own. An epoch that is trained again after a kill replaces what the killed run said of
    it and of later ones. Close it, or use it as a context manager, to be sure that everything is on disk.

    Parameters
    ----------
    folder : path
        Of one run; ``tensorboard --logdir`` on its parent compares runs.

    Raises
    ------
    ConfigError
        If TensorBoard is not installed, or the folder cannot be written.
    """

    def __init__(self, folder: str | Path) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise ConfigError(
                f"TensorBoard logging needs the package tensorboard ({error}): pip install 'pyro-cge[tensorboard]'"
            ) from error
        self.folder = Path(folder)
        self._new_writer = SummaryWriter
        self._writer: SummaryWriter | None = None

    def __call__(self, row: Mapping[str, float]) -> None:
        epoch = int(row["epoch"])
        if self._writer is None:
            try:
                self._writer = self._new_writer(str(self.folder), purge_step=epoch)
            except OSError as error:
                raise ConfigError(
                    f"cannot write TensorBoard logs to {self.folder}: {error.strerror or error}"
                ) from error
        for name, value in row.items():
            if name != "epoch":
                part, _, term = name.partition("_")
                tag = f"{term}/{part}" if part in ("train", "valid") else name
                self._writer.add_scalar(tag, float(value), epoch)
        self._writer.flush()

    def close(self) -> None:
        """Write what is left and close the file."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def __enter__(self) -> TensorBoardLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
