"""``mantler pull``: from a name to a model in the store."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Protocol

from mantler.messages import LoadProgress, LoadStage
from runtime_server.models.decoder import DecoderConfig, Weights
from runtime_server.models.download import fetched
from runtime_server.models.errors import PullError
from runtime_server.models.files import check_space, clear_disk_errors, sha256
from runtime_server.models.footprint import weight_bytes
from runtime_server.models.manifest import MANIFEST_FILE, Manifest, StoredFile, package_versions
from runtime_server.models.quantizations import DEFAULT_QUANTIZATION, QUANTIZATIONS
from runtime_server.models.renderer import check_template
from runtime_server.models.shapes import parameter_count
from runtime_server.models.source import ModelSource, open_source
from runtime_server.models.store import BusyError, ModelStore
from runtime_server.models.target import LocalPath, Target, resolve
from runtime_server.models.tokenizer import Tokenizer

LOCK_TIMEOUT_S = 3600.0
"""How long a pull waits for another one of the same model."""

PADDED = 1.05
"""Bytes on disk for each byte of weights, at most: tensors begin at whole pages."""

Progress = Callable[[LoadProgress], None]


class Builder(Protocol):
    """Writes the ONNX model, as :func:`runtime_server.models.graph.build` does."""

    def __call__(
        self,
        config: DecoderConfig,
        weights: Weights,
        folder: Path,
        *,
        quantization: str,
        progress: Callable[[int, int], None],
    ) -> None: ...


def pull(
    target: str,
    home: Path,
    *,
    as_name: str | None = None,
    quantization: str = DEFAULT_QUANTIZATION,
    force: bool = False,
    progress: Progress = lambda report: None,
    notice: Callable[[str], None] = lambda text: None,
    lock_timeout_s: float = LOCK_TIMEOUT_S,
    builder: Builder | None = None,
) -> Manifest:
    """Fetches and converts a model, or finds it in the store. Blocks.

    A model appears in the store whole or not at all. An interrupted pull leaves nothing in the store, and the next one
    goes on with what it had finished downloading.

    Args:
        target: a catalogue name, a path to a ``.gguf`` file or a Hugging Face folder, or ``hf:ORG/REPO[@REV]``.
        home: ``MANTLER_HOME``; models go to ``models``, downloads to ``cache``.
        as_name: the id to give the model, instead of one that is derived from ``target``.
        quantization: of the stored weights, one of :mod:`runtime_server.models.quantizations`.
        force: converts again what the store has already.
        progress: hears how far the pull is: DOWNLOADING, then CONVERTING.
        notice: hears a sentence where the pull must wait.
        lock_timeout_s: seconds to wait for another pull of the same model.
        builder: writes the ONNX model.

    Raises:
        PullError: what is wrong and what to do about it.
    """
    if quantization not in QUANTIZATIONS:
        raise PullError(f"The quantisation {quantization!r} is not known.", hint=f"known: {', '.join(QUANTIZATIONS)}")
    wanted, store = resolve(target, as_name), ModelStore(home / "models")
    with clear_disk_errors(), _locked(store, wanted, lock_timeout_s, notice):
        stored = None if force else _usable(store, wanted, quantization)
        if stored is not None:
            return stored
        with _on_disk(wanted, home / "cache", progress) as path, store.adding(wanted.name) as folder:
            return _convert(wanted, path, folder, quantization, progress, builder)


def _usable(store: ModelStore, wanted: Target, quantization: str) -> Manifest | None:
    """What the store has under the wanted id, where it need not be made again."""
    try:
        stored = store.get(str(wanted.name))
    except PullError:
        return None  # damaged, or of another format version
    if stored is None or stored.quantization != quantization:
        return None
    if stored.source != str(wanted.origin):
        raise PullError(
            f"{wanted.name} is in the store already, from {stored.source}.",
            hint="choose another id with --as, or replace it with --force",
        )
    return stored


@contextmanager
def _locked(store: ModelStore, wanted: Target, timeout_s: float, notice: Callable[[str], None]) -> Iterator[None]:
    with ExitStack() as stack:
        try:
            stack.enter_context(store.locked(wanted.name, timeout_s=0))
        except BusyError:
            notice(f"Another process is pulling or removing {wanted.name}; waiting for it.")
            stack.enter_context(store.locked(wanted.name, timeout_s=timeout_s))
        yield


@contextmanager
def _on_disk(wanted: Target, cache_dir: Path, progress: Progress) -> Iterator[Path]:
    if isinstance(wanted.origin, LocalPath):
        yield wanted.origin.path
        return

    def report(done: int, total: int) -> None:
        progress(LoadProgress(LoadStage.DOWNLOADING, done, total))

    report(0, 0)
    with fetched(wanted.origin, cache_dir, report) as path:
        yield path


def _convert(
    wanted: Target, path: Path, folder: Path, quantization: str, progress: Progress, builder: Builder | None
) -> Manifest:
    # Imported here because it brings onnx, which nothing but a conversion needs.
    from runtime_server.models.graph import build, work_bytes

    source = open_source(path)
    _check_token_ids(source)
    check_space(folder, int(PADDED * weight_bytes(source.config, quantization)))

    def report(done: int, total: int) -> None:
        progress(LoadProgress(LoadStage.CONVERTING, done, total))

    report(0, work_bytes(source.config))
    source.tokenizer.save(folder)
    # What cannot be loaded is an error now, not at the first request.
    template = Tokenizer.load(folder).template
    if template is not None:
        check_template(template)
    (builder or build)(source.config, source.weights, folder, quantization=quantization, progress=report)
    manifest = Manifest(
        id=str(wanted.name),
        source=str(wanted.origin),
        source_format=source.format,
        source_sha256={file.name: sha256(file) for file in source.files},
        quantization=quantization,
        parameter_count=parameter_count(source.config),
        config=source.config,
        files={f.name: StoredFile(sha256(f), f.stat().st_size) for f in sorted(folder.iterdir())},
        created_unix_s=int(time.time()),
        versions=package_versions(),
    )
    (folder / MANIFEST_FILE).write_text(manifest.to_json(), encoding="utf-8")
    return manifest


def _check_token_ids(source: ModelSource) -> None:
    """An id behind the embedding's end would fail every request of a batch."""
    highest = max([*source.tokenizer.tokenizer.get_vocab().values(), *source.tokenizer.vocabulary.eos_ids], default=0)
    if highest >= source.config.vocab_size:
        raise PullError(
            f"The tokenizer has the token id {highest}; the model knows {source.config.vocab_size} tokens only."
        )
