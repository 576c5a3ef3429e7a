"""What weights a decoder must have, and whether a file has them."""

from __future__ import annotations

import math
from collections.abc import Mapping

from runtime_server.models.decoder import SUPPORTED_ARCHITECTURES, DecoderConfig
from runtime_server.models.errors import PullError

Shape = tuple[int, ...]

_LIMITS = {
    "layers": 1024,
    "hidden": 2**17,
    "intermediate": 2**19,
    "heads": 2**12,
    "kv_heads": 2**12,
    "head_dim": 2**8,
    "vocab_size": 2**22,
    "context_length": 2**31,
}
"""Above these a configuration is damaged, not large; ``head_dim`` is what the operators take."""
HEAD_DIM_MULTIPLE = 16
"""See ``runtime_server/native/attention_op.cpp``."""


def check_architecture(architecture: object) -> str:
    """``architecture`` where it is supported; else a :class:`PullError` that lists those which are."""
    if isinstance(architecture, str) and architecture in SUPPORTED_ARCHITECTURES:
        return architecture
    raise PullError(
        f"The architecture {architecture!r} is not supported.", hint=f"supported: {', '.join(SUPPORTED_ARCHITECTURES)}"
    )


def check_config(config: DecoderConfig) -> None:
    """Refuses sizes that no model has, before anything is made from them. Raises :class:`PullError`."""
    for name, limit in _LIMITS.items():
        value = getattr(config, name)
        if not 1 <= value <= limit:
            raise PullError(f"The model's configuration is damaged: {name} is {value}, not 1 to {limit}.")
    if config.head_dim % HEAD_DIM_MULTIPLE:
        raise PullError(
            f"The model's heads have {config.head_dim} numbers each; the CPU operators take multiples of "
            f"{HEAD_DIM_MULTIPLE}, up to {_LIMITS['head_dim']}."
        )
    if config.heads % config.kv_heads:
        raise PullError(
            "The model's configuration is damaged: "
            f"{config.heads} heads of {config.head_dim} do not go with {config.kv_heads} key and value heads."
        )
    if not 0 < config.rms_eps < 1:
        raise PullError(f"The model's configuration is damaged: the norm's epsilon is {config.rms_eps}.")
    if not all(0 < angle < math.inf for angle in config.rope_inv_freq):
        raise PullError("The model's configuration is damaged: its rotary angles are not positive numbers.")


def weight_shapes(config: DecoderConfig) -> dict[str, Shape]:
    """Every weight of the decoder with its shape, named as in :mod:`runtime_server.models.decoder`."""
    hidden, inner = config.hidden, config.intermediate
    q_rows, kv_rows = config.heads * config.head_dim, config.kv_heads * config.head_dim
    layer: dict[str, Shape] = {"attn_norm": (hidden,), "q": (q_rows, hidden), "k": (kv_rows, hidden)}
    layer["v"] = (kv_rows, hidden)
    if config.qkv_bias:
        layer |= {"q_bias": (q_rows,), "k_bias": (kv_rows,), "v_bias": (kv_rows,)}
    if config.qk_norm:
        layer |= {"q_norm": (config.head_dim,), "k_norm": (config.head_dim,)}
    layer |= {"o": (hidden, q_rows), "mlp_norm": (hidden,)}
    layer |= {"gate": (inner, hidden), "up": (inner, hidden), "down": (hidden, inner)}
    shapes: dict[str, Shape] = {"embed": (config.vocab_size, hidden)}
    for index in range(config.layers):
        shapes |= {f"layers.{index}.{name}": shape for name, shape in layer.items()}
    shapes["final_norm"] = (hidden,)
    if not config.tied_embeddings:
        shapes["lm_head"] = (config.vocab_size, hidden)
    return shapes


def parameter_count(config: DecoderConfig) -> int:
    """Number of weights; tied embeddings count once."""
    return sum(math.prod(shape) for shape in weight_shapes(config).values())


def check_weights(config: DecoderConfig, found: Mapping[str, Shape]) -> None:
    """Compares a file's weights with what ``config`` asks for. Raises :class:`PullError` naming the first misfit."""
    expected = weight_shapes(config)
    missing = [name for name in expected if name not in found]
    if missing:
        raise PullError(f"{len(missing)} of {len(expected)} weights are missing, {missing[0]!r} first.")
    for name, shape in expected.items():
        if found[name] != shape:
            raise PullError(f"The weight {name!r} has the shape {found[name]}; the configuration asks for {shape}.")
    unknown = sorted(set(found) - set(expected))
    if unknown:
        raise PullError(f"The model has weights that a {config.architecture} decoder does not use: {unknown[0]!r}.")
