"""Fetches a repository of the Hugging Face hub."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from fnmatch import fnmatchcase
from pathlib import Path

from runtime_server.models.catalogue import HubRepo
from runtime_server.models.errors import PullError
from runtime_server.models.files import check_space

WANTED = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "chat_template.json",
    "model.safetensors",
    "model.safetensors.index.json",
    "model-*-of-*.safetensors",
)
"""Weights in one form only: some repositories hold the same weights several times."""
POLL_S = 0.25


def download_repo(origin: HubRepo, folder: Path, report: Callable[[int, int], None]) -> Path:
    """Brings what a conversion needs into ``folder``; files that are there already are not fetched again.

    Raises:
        PullError: the hub or the repository cannot be reached, or has no safetensors.
    """
    # Slow to import, and only pulls from the hub need it.
    import httpx2
    import huggingface_hub
    from huggingface_hub.errors import (
        GatedRepoError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    try:
        info = huggingface_hub.HfApi().model_info(origin.repo, revision=origin.revision, files_metadata=True)
        siblings = info.siblings or []
        wanted = {
            file.rfilename for file in siblings if any(fnmatchcase(file.rfilename, pattern) for pattern in WANTED)
        }
        if not any(name.endswith(".safetensors") for name in wanted):
            raise PullError(f"{origin} holds no model.safetensors.", hint="download a GGUF file and pull that")
        total = sum(file.size or 0 for file in siblings if file.rfilename in wanted)
        check_space(folder, max(total - _size(folder), 0))
        were_disabled = are_progress_bars_disabled()
        disable_progress_bars()
        try:
            with _watched(folder, total, report):
                huggingface_hub.snapshot_download(
                    origin.repo, revision=info.sha, local_dir=folder, allow_patterns=list(WANTED)
                )
        finally:
            if not were_disabled:
                enable_progress_bars()
    except GatedRepoError as error:
        raise PullError(
            f"{origin} asks for a licence to be accepted.", hint="accept it on its page, set HF_TOKEN"
        ) from error
    except (RepositoryNotFoundError, RevisionNotFoundError) as error:
        raise PullError(f"{origin} does not exist, or is private.", hint="private ones need HF_TOKEN") from error
    except (httpx2.HTTPError, LocalEntryNotFoundError, ConnectionError, TimeoutError) as error:
        raise PullError(
            f"{origin} could not be fetched.", hint="check the network; a new try goes on from here"
        ) from error
    return folder


@contextlib.contextmanager
def _watched(folder: Path, total: int, report: Callable[[int, int], None]) -> Iterator[None]:
    """Reports how much has arrived. Sizes on disk do not depend on how the client fetches."""
    stop = threading.Event()

    def watch() -> None:
        while not stop.wait(POLL_S):
            report(min(_size(folder), total), total)

    thread = threading.Thread(target=watch, name="download progress", daemon=True)
    thread.start()
    try:
        yield
        report(total, total)
    finally:
        stop.set()
        thread.join()


def _size(folder: Path) -> int:
    size = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(FileNotFoundError):  # renamed while we look
            size += path.stat().st_size if path.is_file() else 0
    return size
