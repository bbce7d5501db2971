"""The run folder: what a training run leaves behind."""

import io
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout

from recipe import checkpoint as checkpoints
from recipe.checkpoint import Checkpoint
from recipe.curves import draw_curves
from recipe.errors import UserError
from recipe.files import write_atomically


@dataclass(frozen=True)
class RunFolder:
    """A folder that belongs to one run."""

    path: Path

    @property
    def checkpoint(self) -> Path:
        """Where the checkpoint is."""
        return self.path / checkpoints.FILE_NAME

    def save(self, checkpoint: Checkpoint) -> None:
        """Save the run's state, and the files that are derived from it for people and programs.

        The checkpoint comes first and holds everything, so a crash in between loses nothing.
        """
        checkpoints.save_checkpoint(self.checkpoint, checkpoint)
        losses = io.BytesIO()
        np.save(losses, checkpoint.losses, allow_pickle=False)
        write_atomically(self.path / "losses.npy", losses.getvalue())
        lines = "".join(json.dumps(entry) + "\n" for entry in checkpoint.metrics)
        write_atomically(self.path / "metrics.jsonl", lines.encode())

    def save_config(self, config: dict[str, Any]) -> None:
        """Write ``config.json``."""
        write_atomically(self.path / "config.json", (json.dumps(config, indent=2) + "\n").encode())

    def save_curves(self, checkpoint: Checkpoint) -> None:
        """Draw ``curves.png``."""
        write_atomically(self.path / "curves.png", draw_curves(checkpoint))


@contextmanager
def open_folder(path: Path, resume: Path | None) -> Iterator[RunFolder]:
    """Hold a folder for a run; it may hold nothing, or the very checkpoint the run goes on from.

    Raises:
        UserError: it cannot be written, another process is running in it, or it holds a run already.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path / ".lock", blocking=False)
        held = lock.acquire()
    except Timeout:
        raise UserError(f"another run is at work in {path}; wait for it or choose another --out") from None
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"cannot use {path} as run folder: {reason}; choose another --out") from None
    with held:
        folder = RunFolder(path)
        own = resume is not None and resume.exists() and resume.resolve() == folder.checkpoint.resolve()
        if folder.checkpoint.exists() and not own:
            raise UserError(
                f"{path} already holds a run; choose another --out, "
                f"or go on with --resume {folder.checkpoint}"
            )
        yield folder
