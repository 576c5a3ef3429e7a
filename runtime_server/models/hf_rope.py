"""Rotary embeddings as ``config.json`` writes them, in its older form and its newer one."""

from __future__ import annotations

from dataclasses import dataclass

from runtime_server.models import rope
from runtime_server.models.errors import PullError
from runtime_server.models.json_file import JsonFile

SUPPORTED_TYPES = ("default", "linear", "llama3", "yarn")


@dataclass(frozen=True, slots=True)
class RopeAngles:
    """Angles with their scaling applied."""

    inv_freq: tuple[float, ...]
    attention_scale: float
    context_length: int


def read_rope(config: JsonFile, head_dim: int, context_length: int) -> RopeAngles:
    """Reads ``rope_parameters``, or ``rope_theta`` and ``rope_scaling``.

    Raises:
        PullError: the scaling is of a type that is not supported, or lacks a parameter.
    """
    options = config.section("rope_parameters")
    if not options.values:
        options = config.section("rope_scaling")
    base = options.get("rope_theta", float, config.get("rope_theta", float, 10_000.0))
    kind = options.get("rope_type", str, options.get("type", str, "default"))
    if not base > 1 or not 0 < head_dim <= 2**12:
        raise PullError(f"The model's configuration is damaged: rotary base {base}, heads of {head_dim}.")
    if options.get("partial_rotary_factor", float, 1.0) != 1.0:
        raise PullError("Models that rotate only a part of each head are not supported.")
    angles, scale = rope.inverse_frequencies(head_dim, base), 1.0
    if kind == "linear":
        angles = rope.linear(angles, _factor(options))
    elif kind == "llama3":
        angles = _llama3(options, angles, context_length)
    elif kind == "yarn":
        angles, scale = _yarn(options, angles, base, context_length)
        original = options.get("original_max_position_embeddings", int)
        if original is not None:
            # Some configurations keep the context length from before the stretch.
            context_length = max(context_length, int(original * _factor(options)))
    elif kind != "default":
        raise PullError(
            f"Rotary scaling of type {kind!r} is not supported.", hint=f"supported: {', '.join(SUPPORTED_TYPES)}"
        )
    return RopeAngles(tuple(angles.tolist()), scale, context_length)


def _factor(options: JsonFile) -> float:
    factor: float = options.need_value("factor", float)
    if not 1 <= factor <= 1e6:
        raise PullError(f"{options.name}: 'factor' is {factor}, not 1 to 1000000.")
    return factor


def _original(options: JsonFile, context_length: int) -> int:
    original: int = options.get("original_max_position_embeddings", int, context_length)
    if original < 1:
        raise PullError(f"{options.name}: 'original_max_position_embeddings' is {original}.")
    return original


def _llama3(options: JsonFile, angles: rope.Frequencies, context_length: int) -> rope.Frequencies:
    low, high = options.need_value("low_freq_factor", float), options.need_value("high_freq_factor", float)
    if not 0 < low < high:
        raise PullError(f"{options.name}: 'low_freq_factor' {low} is not below 'high_freq_factor' {high}.")
    original = _original(options, context_length)
    return rope.llama3(angles, factor=_factor(options), low=low, high=high, original_context=original)


def _yarn(
    options: JsonFile, angles: rope.Frequencies, base: float, context_length: int
) -> tuple[rope.Frequencies, float]:
    factor = _factor(options)
    fast, slow = options.get("beta_fast", float, 32.0) or 32.0, options.get("beta_slow", float, 1.0) or 1.0
    if not 0 < slow <= fast:
        raise PullError(f"{options.name}: 'beta_slow' {slow} is above 'beta_fast' {fast}.")
    scaled = rope.yarn(
        angles,
        base=base,
        factor=factor,
        original_context=_original(options, context_length),
        beta_fast=fast,
        beta_slow=slow,
        truncate=options.get("truncate", bool, True),
    )
    scale = options.get("attention_factor", float)
    if scale is None:
        part, whole = options.get("mscale", float, 0.0), options.get("mscale_all_dim", float, 0.0)
        scale = rope.yarn_attention_scale(factor)
        if part and whole:
            scale = rope.yarn_attention_scale(factor, part) / rope.yarn_attention_scale(factor, whole)
    return scaled, scale
