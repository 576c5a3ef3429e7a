"""The one place that decides on which device a model runs, with how much memory, and makes the backend for it."""

from __future__ import annotations

import errno
import logging
from dataclasses import dataclass
from pathlib import Path

from mantler.config import RuntimeSettings
from mantler.memory import available_bytes
from runtime_server.backends.base import Backend
from runtime_server.backends.cpu import CpuBackend
from runtime_server.backends.cuda import CudaBackend
from runtime_server.backends.cuda_runtime import CudaError
from runtime_server.backends.cuda_state import cuda_state
from runtime_server.backends.devices import CudaState, Device, DeviceError, card_for, choose
from runtime_server.engine.kv_plan import FREE_MEMORY_SHARE, KvPlan, KvPlanError, plan_kv
from runtime_server.engine.scheduler import IDLE_CHUNKS
from runtime_server.models.cuda_format import block_tokens
from runtime_server.models.footprint import Footprint, footprint, usable_bytes
from runtime_server.models.manifest import Manifest
from runtime_server.models.quantizations import DEFAULT_CUDA_QUANTIZATION, DEFAULT_QUANTIZATION

logger = logging.getLogger(__name__)

CACHE_SHARE = {"cpu": FREE_MEMORY_SHARE, "cuda": 1.0}
"""Of the usable memory, where the user names no size. Nothing but models needs a card's."""


@dataclass(frozen=True, slots=True)
class Placement:
    """Where a model is going to run."""

    device: Device
    plan: KvPlan


def check_device(wish: str) -> None:
    """Raises ``DeviceError`` where CUDA is asked for and cannot be used, whatever the model."""
    if wish.startswith("cuda"):
        card_for(wish, cuda_state())


def quantization_for(wish: str) -> str:
    """What a model is stored as for the device that ``wish`` means here, where the user names no quantization."""
    if wish == "cpu" or (wish == "auto" and cuda_state().missing):
        return DEFAULT_QUANTIZATION
    return DEFAULT_CUDA_QUANTIZATION


def place(manifest: Manifest, settings: RuntimeSettings, *, reserved_bytes: int = 0) -> Placement:
    """Chooses the device of a stored model and plans its memory there, without loading anything.

    Args:
        reserved_bytes: of caches on the processor. The system still counts what they have not written yet as free.

    Raises: ``DeviceError``, and ``KvPlanError`` where the settings do not fit the memory.
    """
    cuda = CudaState() if settings.device == "cpu" else cuda_state()
    device = choose(settings.device, manifest.quantization, cuda)
    free = max(0, available_bytes() - reserved_bytes) if device.card is None else device.card.free_bytes
    plan = plan_kv(
        footprint=stored_footprint(device.kind, manifest, settings),
        max_batch=settings.max_batch,
        context_length=manifest.config.context_length,
        max_request_tokens=settings.max_request_tokens,
        wanted_bytes=settings.kv_memory_mb * 1_000_000,
        usable_bytes=usable_bytes(device.kind, free),
        cache_share=CACHE_SHARE[device.kind],
    )
    return Placement(device, plan)


def stored_footprint(kind: str, manifest: Manifest, settings: RuntimeSettings) -> Footprint:
    """The footprint of a stored model on a device of ``kind``."""
    return footprint(
        kind,
        manifest.config,
        manifest.quantization,
        max_batch=settings.max_batch,
        step_tokens=IDLE_CHUNKS * settings.prefill_chunk,
        stored_bytes=manifest.weight_bytes,
    )


def load_backend(placement: Placement, manifest: Manifest, folder: Path, settings: RuntimeSettings) -> Backend:
    """Loads the model where it was placed.

    Raises: ``KvPlanError`` where the memory is not given, ``DeviceError`` where the card does not work, and what the
    backend raises.
    """
    card, blocks, batch = placement.device.card, placement.plan.blocks, settings.max_batch
    if card is not None:
        try:
            return CudaBackend(
                folder,
                manifest.config,
                device_id=card.index,
                blocks=blocks,
                longest=placement.plan.max_request_tokens,
                max_batch=batch,
                # A piece of a prompt fills one block at least.
                step_tokens=IDLE_CHUNKS * max(settings.prefill_chunk, block_tokens(manifest.config.head_dim)),
            )
        except MemoryError as error:
            raise _not_given("the card", error) from error
        except CudaError as error:
            raise DeviceError(
                f"{card} does not work: {error}", "`nvidia-smi` and the system's log may say more"
            ) from error
    try:
        return CpuBackend(folder, manifest.config, blocks=blocks, max_batch=batch, threads=settings.threads)
    except OSError as error:
        if error.errno != errno.ENOMEM:
            raise
        raise _not_given("the system", error) from error


def _not_given(who: str, error: Exception) -> KvPlanError:
    logger.error("memory is missing: %s", error)
    return KvPlanError(f"{who} does not give that much memory to keys and values", "lower --kv-memory-mb")
