"""The run folder: what a training run leaves behind."""

import io
import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout

from recipe import checkpoint as checkpoints
from recipe.checkpoint import Checkpoint
from recipe.errors import UserError, one_line
from recipe.figures import draw_curves
from recipe.files import read_at_most, remove_leftovers, write_atomically

CURVES, CONFIG, LOCK = "curves.png", "config.json", ".lock"
MAX_CONFIG_BYTES = 2**20
FILES = (checkpoints.FILE_NAME, CONFIG, "losses.npy", "metrics.jsonl", CURVES)


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
        for name, content in _derived(checkpoint).items():
            write_atomically(self.path / name, content)

    def save_config(self, config: dict[str, Any]) -> None:
        """Write ``config.json``."""
        write_atomically(self.path / CONFIG, (json.dumps(config, indent=2) + "\n").encode())

    def save_curves(self, checkpoint: Checkpoint) -> None:
        """Draw ``curves.png``."""
        write_atomically(self.path / CURVES, draw_curves(checkpoint))

    def complete(self, checkpoint: Checkpoint) -> bool:
        """Write the files that a killed run did not write after its last checkpoint.

        Returns:
            False if all files were there already.

        Raises:
            UserError: it cannot be written.
        """
        files = _derived(checkpoint) | {CURVES: draw_curves(checkpoint)}
        missing = {name: content for name, content in files.items() if not self._holds(name, content)}
        for name, content in missing.items():
            write_atomically(self.path / name, content)
        return bool(missing)

    def _holds(self, name: str, content: bytes) -> bool:
        try:
            return read_at_most(self.path / name, len(content)) == content
        except OSError:
            return False


def _derived(checkpoint: Checkpoint) -> dict[str, bytes]:
    """The files that are made from the checkpoint, by name; the picture is not among them."""
    losses = io.BytesIO()
    np.save(losses, checkpoint.losses, allow_pickle=False)
    lines = "".join(json.dumps(entry) + "\n" for entry in checkpoint.metrics)
    return {"losses.npy": losses.getvalue(), "metrics.jsonl": lines.encode()}


def is_own(path: Path, resume: Path | None) -> bool:
    """Whether ``resume`` is the checkpoint of the folder ``path`` itself."""
    own = path / checkpoints.FILE_NAME
    return resume is not None and resume.exists() and resume.resolve() == own.resolve()


@contextmanager
def open_folder(path: Path, resume: Path | None) -> Iterator[RunFolder]:
    """Lock a folder for a run. It must be free of runs, except for the one that this run goes on from.

    Raises:
        UserError: it cannot be written, another process is running in it, or it holds a run already.
    """
    with _lock(path):
        folder = RunFolder(path)
        if folder.checkpoint.exists() and not is_own(path, resume):
            raise UserError(
                f"{path} already holds a run{_dataset(path)}; choose another --out, "
                f"or go on with --resume {path}"
            )
        try:
            for name in FILES:
                remove_leftovers(path / name)
        except OSError as error:
            raise _unusable(path, error) from None
        yield folder


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    """Make a folder and lock it, by a file in it that is removed before the lock is released."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        held = FileLock(path / LOCK, blocking=False).acquire()
    except Timeout:
        raise UserError(f"another run is at work in {path}; wait for it or choose another --out") from None
    except OSError as error:
        raise _unusable(path, error) from None
    with held:
        try:
            yield
        finally:
            with suppress(OSError):
                (path / LOCK).unlink()


def _dataset(path: Path) -> str:
    """What the run in a folder was trained on, in words; nothing if its config does not tell."""
    try:
        config = json.loads(read_at_most(path / CONFIG, MAX_CONFIG_BYTES))
        return f" on {one_line(str(config['data']['name']))[:20]}"
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def _unusable(path: Path, error: OSError) -> UserError:
    reason = error.strerror or error
    return UserError(f"cannot use {path} as run folder: {reason}; choose another --out")
