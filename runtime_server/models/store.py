"""The models on this machine: ``models_dir/<name>/<tag>/``.

Names never start with a dot, so the store's own folders do: ``.partial`` holds models that are being made or removed,
``.locks`` one lock file per model.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from runtime_server.models.errors import PullError
from runtime_server.models.files import remove_tree, sha256, sync, sync_folder
from runtime_server.models.manifest import MANIFEST_FILE, Manifest
from runtime_server.models.names import ModelName

log = logging.getLogger(__name__)

MOVING_TIMEOUT_S = 60


class ModelStore:
    """Finds, adds and removes stored models. Safe to use from several processes.

    Args:
        models_dir: the store's folder. It is made when the first model is added.
    """

    def __init__(self, models_dir: Path) -> None:
        self.models_dir = models_dir

    def path(self, model_id: str) -> Path:
        """The folder of ``model_id``, whether it exists or not. Raises :class:`PullError` for an invalid id."""
        return self.models_dir / ModelName.parse(model_id).folder

    def get(self, model_id: str) -> Manifest | None:
        """What is stored as ``model_id``, or ``None``. Raises :class:`PullError` where it must be pulled again."""
        try:
            return Manifest.load(self.path(model_id))
        except FileNotFoundError:
            return None

    def list(self) -> tuple[Manifest, ...]:
        """All models that can be run, ordered by id. Those that must be pulled again are logged and left out."""
        found: list[Manifest] = []
        for file in sorted(self.models_dir.glob(f"[!.]*/[!.]*/{MANIFEST_FILE}")):
            try:
                found.append(Manifest.load(file.parent))
            except FileNotFoundError:
                continue  # removed since it was found
            except PullError as error:
                log.warning("%s:%s is left out: %s", file.parent.parent.name, file.parent.name, error)
        return tuple(sorted(found, key=lambda manifest: manifest.id))

    def verify(self, model_id: str) -> None:
        """Compares every stored file with its checksum. Raises :class:`PullError` naming the first that differs."""
        manifest = self.get(model_id)
        if manifest is None:
            raise _unknown(model_id)
        for name, file in manifest.files.items():
            if sha256(self.path(model_id) / name) != file.sha256:
                raise PullError(f"{name} of {manifest.id} is damaged.", hint="pull it again with --force")

    def remove(self, model_id: str) -> None:
        """Deletes a model. Raises :class:`PullError` where there is none, or while it is being pulled."""
        name = ModelName.parse(model_id)
        with self.locked(name, timeout_s=0):
            folder = self.models_dir / name.folder
            if not folder.exists():
                raise _unknown(model_id)
            # Out of sight at once, deleted after.
            trash = self._partial(name, "old")
            remove_tree(trash)
            trash.parent.mkdir(parents=True, exist_ok=True)
            with self._moving():
                folder.rename(trash)
                if not any(folder.parent.iterdir()):
                    folder.parent.rmdir()
            remove_tree(trash)

    @contextmanager
    def locked(self, name: ModelName, *, timeout_s: float) -> Iterator[None]:
        """Keeps other processes from adding or removing ``name``. Raises :class:`PullError` after ``timeout_s``.

        The system releases the lock of a process that dies.
        """
        locks = self.models_dir / ".locks"
        locks.mkdir(parents=True, exist_ok=True)
        lock = FileLock(locks / f"{name.file_stem}.lock")
        try:
            lock.acquire(timeout=timeout_s, poll_interval=0.1)
        except Timeout as error:
            raise BusyError(
                f"Another process is pulling or removing {name}.", hint="wait for it or end it, then try again"
            ) from error
        try:
            yield
        finally:
            lock.release()

    @contextmanager
    def adding(self, name: ModelName) -> Iterator[Path]:
        """A fresh folder to make ``name`` in. It takes its place when the block ends well and vanishes otherwise.

        Hold :meth:`locked` around it. What a killed process left behind is cleared away first.
        """
        fresh, old, place = self._partial(name, "new"), self._partial(name, "old"), self.models_dir / name.folder
        self._clear(fresh, old, place)
        fresh.mkdir(parents=True)
        try:
            yield fresh
            sync_folder(fresh)
            with self._moving():
                place.parent.mkdir(parents=True, exist_ok=True)
                if place.exists():
                    place.rename(old)
                fresh.rename(place)
            sync(place.parent)
        finally:
            self._clear(fresh, old, place)

    def _clear(self, fresh: Path, old: Path, place: Path) -> None:
        if old.exists() and not place.exists():
            # The renames were cut short between the two: what was about to be replaced is still good.
            old.rename(place)
        remove_tree(fresh)
        remove_tree(old)

    @contextmanager
    def _moving(self) -> Iterator[None]:
        """Keeps the folder of a name from being made and removed at the same time. Held for moments only."""
        with FileLock(self.models_dir / ".locks" / ".moving.lock", timeout=MOVING_TIMEOUT_S):
            yield

    def _partial(self, name: ModelName, what: str) -> Path:
        return self.models_dir / ".partial" / f"{name.file_stem}+{what}"


class BusyError(PullError):
    """Another process holds the model's lock."""


def _unknown(model_id: str) -> PullError:
    return PullError(f"{model_id} is not in the store.", hint="`mantler models` lists what is")
