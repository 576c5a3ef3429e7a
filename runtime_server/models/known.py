"""Shapes of models that can be told without fetching anything: stored ones, files, and those of the catalogue."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from runtime_server.models.catalogue import CATALOGUE, HubRepo
from runtime_server.models.decoder import DecoderConfig
from runtime_server.models.errors import PullError
from runtime_server.models.rope import inverse_frequencies
from runtime_server.models.source import open_source
from runtime_server.models.store import ModelStore
from runtime_server.models.target import LocalPath, resolve


@dataclass(frozen=True, slots=True)
class KnownModel:
    """A model's shape, and how it is stored where it is."""

    name: str
    config: DecoderConfig
    quantization: str | None = None
    weight_bytes: int | None = None


def known(text: str, store: ModelStore) -> KnownModel:
    """The model that ``text`` names: an id, a path to a file or folder, or ``hf:ORG/REPO``.

    Raises: ``PullError`` where ``text`` names nothing, or a repository whose shape is not on this machine.
    """
    if text.startswith("hf:"):
        return _of_repository(text, store)
    if not ("/" in text or text.endswith(".gguf")):
        stored = store.get(text)
        if stored is not None:
            return KnownModel(stored.id, stored.config, stored.quantization, stored.weight_bytes)
    target = resolve(text)
    if isinstance(target.origin, LocalPath):
        return KnownModel(str(target.name), open_source(target.origin.path).config)
    return KnownModel(str(target.name), CATALOGUE_CONFIGS[str(target.name)])


def _of_repository(text: str, store: ModelStore) -> KnownModel:
    origin = resolve(text).origin
    for stored in store.list():
        if stored.source == str(origin):
            return KnownModel(stored.id, stored.config, stored.quantization, stored.weight_bytes)
    for entry in CATALOGUE.values():
        if isinstance(entry.origin, HubRepo) and entry.origin == origin:
            return KnownModel(entry.id, CATALOGUE_CONFIGS[entry.id])
    raise PullError(
        f"The shape of {text} is not known on this machine.",
        hint="`mantler pull` fetches the model; a folder that holds its config.json and weights can be named as well",
    )


def _config(
    architecture: str, layers: int, hidden: int, intermediate: int, heads: int, kv_heads: int, context: int, base: float
) -> DecoderConfig:
    qwen3 = architecture == "qwen3"
    head_dim = 128 if qwen3 else hidden // heads
    return DecoderConfig(
        architecture=architecture,
        layers=layers,
        hidden=hidden,
        intermediate=intermediate,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        vocab_size=49_152 if architecture == "llama" else 151_936,
        context_length=context,
        rms_eps=1e-5 if architecture == "llama" else 1e-6,
        rope_inv_freq=tuple(map(float, inverse_frequencies(head_dim, base))),
        tied_embeddings=True,
        qkv_bias=architecture == "qwen2",
        qk_norm=qwen3,
    )


CATALOGUE_CONFIGS: Mapping[str, DecoderConfig] = {
    "smollm2:135m": _config("llama", 30, 576, 1536, 9, 3, 8192, 1e5),
    "smollm2:360m": _config("llama", 32, 960, 2560, 15, 5, 8192, 1e5),
    "smollm2:1.7b": _config("llama", 24, 2048, 8192, 32, 32, 8192, 1.3e5),
    "qwen2.5:0.5b": _config("qwen2", 24, 896, 4864, 14, 2, 32_768, 1e6),
    "qwen3:0.6b": _config("qwen3", 28, 1024, 3072, 16, 8, 40_960, 1e6),
}
"""Of the models in the catalogue, as their makers publish them in ``config.json``."""
