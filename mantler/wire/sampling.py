"""How tokens are drawn and when generation ends, as protobuf messages and back."""

from __future__ import annotations

from mantler import messages as m
from mantler.v1 import generation_pb2


def sampling_to_proto(sampling: m.SamplingParams) -> generation_pb2.SamplingOptions:
    """How tokens are drawn, for the wire."""
    return generation_pb2.SamplingOptions(
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        top_k=sampling.top_k,
        min_p=sampling.min_p,
        seed=sampling.seed,
        presence_penalty=sampling.presence_penalty,
        frequency_penalty=sampling.frequency_penalty,
        repetition_penalty=sampling.repetition_penalty,
        logit_bias=dict(sampling.logit_bias),
    )


def sampling_from_proto(options: generation_pb2.SamplingOptions) -> m.SamplingParams:
    """How tokens are drawn. Raises ``MantlerError`` naming the field that is out of range."""
    return m.SamplingParams(
        temperature=options.temperature if options.HasField("temperature") else 1.0,
        top_p=options.top_p if options.HasField("top_p") else 1.0,
        top_k=options.top_k,
        min_p=options.min_p,
        seed=options.seed if options.HasField("seed") else None,
        presence_penalty=options.presence_penalty,
        frequency_penalty=options.frequency_penalty,
        repetition_penalty=options.repetition_penalty if options.HasField("repetition_penalty") else 1.0,
        logit_bias=tuple(sorted(options.logit_bias.items())),
    )


def stop_to_proto(stop: m.StopParams) -> generation_pb2.StopOptions:
    """When generation ends, for the wire."""
    return generation_pb2.StopOptions(
        max_tokens=stop.max_tokens,
        min_tokens=stop.min_tokens,
        stop_strings=stop.stop_strings,
        stop_token_ids=stop.stop_token_ids,
        ignore_eos=stop.ignore_eos,
    )


def stop_from_proto(options: generation_pb2.StopOptions) -> m.StopParams:
    """When generation ends. Raises ``MantlerError`` naming the field that is out of range."""
    return m.StopParams(
        max_tokens=options.max_tokens if options.HasField("max_tokens") else None,
        min_tokens=options.min_tokens,
        stop_strings=tuple(options.stop_strings),
        stop_token_ids=tuple(options.stop_token_ids),
        ignore_eos=options.ignore_eos,
    )
