"""Which device a model runs on: the user's wish, what the machine has, and how the model is stored. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from runtime_server.backends.cuda_driver import Card
from runtime_server.models.footprint import QUANTIZATIONS

MIN_COMPUTE_CAPABILITY = (8, 0)
"""Older cards have no bf16."""


class DeviceError(ValueError):
    """The device that was asked for is not there, or does not run the model. ``hint`` says what to do."""

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(message)
        self.hint = hint


@dataclass(frozen=True, slots=True)
class Missing:
    """One thing that keeps this machine from computing with CUDA."""

    what: str
    remedy: str
    """A command where there is one."""


@dataclass(frozen=True, slots=True)
class CudaState:
    """What there is for CUDA, and what is not."""

    cards: tuple[Card, ...] = ()
    missing: tuple[Missing, ...] = ()
    """Empty where models can run on :attr:`cards`."""
    driver: tuple[int, int] | None = None
    """The newest CUDA that the driver serves, or ``None`` without a driver."""


@dataclass(frozen=True, slots=True)
class Device:
    """Where a model runs, and why there."""

    card: Card | None
    """``None`` means the processor."""
    reason: str

    @property
    def kind(self) -> Literal["cpu", "cuda"]:
        """For :func:`runtime_server.models.footprint.footprint`."""
        return "cpu" if self.card is None else "cuda"

    def __str__(self) -> str:
        return "cpu" if self.card is None else f"cuda:{self.card.index}"


def choose(wish: str, quantization: str, cuda: CudaState) -> Device:
    """The device for a model that is stored as ``quantization``.

    Args:
        wish: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``. ``auto`` means the first card where CUDA works and the model
            is stored for it, else the processor; ``cuda`` means ``cuda:0``.

    Raises: :class:`DeviceError`.
    """
    for_cuda = quantization in QUANTIZATIONS["cuda"]
    if wish == "cpu" or (wish == "auto" and not for_cuda):
        _check_format("cpu", quantization)
        return Device(None, "as asked" if wish == "cpu" else _why_not_cuda(quantization, cuda))
    card = card_for(wish, cuda)
    _check_format("cuda", quantization)
    return Device(card, f"{card}" if wish == "auto" else f"as asked, {card}")


def card_for(wish: str, cuda: CudaState) -> Card:
    """The card that ``auto``, ``cuda`` or ``cuda:N`` means. Raises :class:`DeviceError` where it cannot be used."""
    if cuda.missing:
        what = "; ".join(missing.what for missing in cuda.missing)
        raise DeviceError(f"CUDA cannot be used here: {what}", cuda.missing[0].remedy)
    index = int(wish.partition(":")[2] or 0)
    if index >= len(cuda.cards):
        last = len(cuda.cards) - 1
        have = "only cuda:0" if last == 0 else f"cuda:0 to cuda:{last}"
        raise DeviceError(f"there is no cuda:{index}: this machine has {have}", "set --device to one of them")
    card = cuda.cards[index]
    if card.compute_capability < MIN_COMPUTE_CAPABILITY:
        major, minor = MIN_COMPUTE_CAPABILITY
        raise DeviceError(f"{card} is too old: compute capability {major}.{minor} is needed", "set --device cpu")
    return card


def _check_format(kind: str, quantization: str) -> None:
    runs = QUANTIZATIONS[kind]
    if quantization not in runs:
        name = "the CPU" if kind == "cpu" else "CUDA"
        raise DeviceError(
            f"the model is stored as {quantization}, and {name} runs {' and '.join(runs)}",
            f"pull it again with --force --quantization {runs[0]}, or choose another --device",
        )


def _why_not_cuda(quantization: str, cuda: CudaState) -> str:
    if cuda.missing:
        return cuda.missing[0].what
    return f"the model is stored as {quantization}, and CUDA runs {' and '.join(QUANTIZATIONS['cuda'])}"
