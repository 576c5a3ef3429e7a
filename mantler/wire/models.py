"""Models and the progress of their loads, as protobuf messages and back."""

from __future__ import annotations

from datetime import UTC, datetime

from mantler import messages as m
from mantler.v1 import admin_pb2, model_pb2

_STATES = {
    m.ModelState.STORED: model_pb2.MODEL_STATE_STORED,
    m.ModelState.LOADING: model_pb2.MODEL_STATE_LOADING,
    m.ModelState.READY: model_pb2.MODEL_STATE_READY,
    m.ModelState.UNLOADING: model_pb2.MODEL_STATE_UNLOADING,
    m.ModelState.FAILED: model_pb2.MODEL_STATE_FAILED,
}
_STATES_BACK = {number: state for state, number in _STATES.items()}

_STAGES = {
    m.LoadStage.DOWNLOADING: model_pb2.LOAD_STAGE_DOWNLOADING,
    m.LoadStage.CONVERTING: model_pb2.LOAD_STAGE_CONVERTING,
    m.LoadStage.LOADING: model_pb2.LOAD_STAGE_LOADING,
    m.LoadStage.READY: model_pb2.LOAD_STAGE_READY,
}
_STAGES_BACK = {number: stage for stage, number in _STAGES.items()}


def model_to_proto(model: m.ModelInfo) -> model_pb2.Model:
    """A model's description for the wire."""
    message = model_pb2.Model(
        id=model.id,
        state=_STATES[model.state],
        architecture=model.architecture,
        quantization=model.quantization,
        parameter_count=model.parameter_count,
        context_length=model.context_length,
        size_bytes=model.size_bytes,
    )
    message.create_time.FromDatetime(datetime.fromtimestamp(model.created_unix_s, UTC))
    deployment = model.deployment
    if deployment is not None:
        message.deployment.CopyFrom(
            model_pb2.Deployment(
                max_request_tokens=deployment.max_request_tokens,
                slots=deployment.slots,
                slots_used=deployment.slots_used,
                queue_capacity=deployment.queue_capacity,
                queue_length=deployment.queue_length,
                kv_cache_bytes=deployment.kv_cache_bytes,
                device=deployment.device,
                profile=_profile_to_proto(deployment.profile),
                held_tokens=deployment.held_tokens,
            )
        )
    return message


def model_from_proto(message: model_pb2.Model) -> m.ModelInfo:
    """A model's description off the wire."""
    deployment = None
    if message.HasField("deployment"):
        deployment = m.Deployment(
            max_request_tokens=message.deployment.max_request_tokens,
            slots=message.deployment.slots,
            slots_used=message.deployment.slots_used,
            queue_capacity=message.deployment.queue_capacity,
            queue_length=message.deployment.queue_length,
            kv_cache_bytes=message.deployment.kv_cache_bytes,
            device=message.deployment.device,
            profile=_profile_from_proto(message.deployment.profile),
            held_tokens=message.deployment.held_tokens,
        )
    return m.ModelInfo(
        id=message.id,
        state=_STATES_BACK[message.state],
        architecture=message.architecture,
        quantization=message.quantization,
        parameter_count=message.parameter_count,
        context_length=message.context_length,
        size_bytes=message.size_bytes,
        created_unix_s=message.create_time.seconds,
        deployment=deployment,
    )


def progress_to_proto(progress: m.LoadProgress) -> model_pb2.LoadModelResponse:
    """A load's progress for the wire."""
    return model_pb2.LoadModelResponse(
        stage=_STAGES[progress.stage],
        completed_bytes=progress.completed_bytes,
        total_bytes=progress.total_bytes,
        model=None if progress.model is None else model_to_proto(progress.model),
    )


def progress_from_proto(message: model_pb2.LoadModelResponse | admin_pb2.DeployModelResponse) -> m.LoadProgress:
    """A load's progress off the wire."""
    return m.LoadProgress(
        stage=_STAGES_BACK[message.stage],
        completed_bytes=message.completed_bytes,
        total_bytes=message.total_bytes,
        model=model_from_proto(message.model) if message.HasField("model") else None,
    )


def deploy_progress_to_proto(progress: m.LoadProgress) -> admin_pb2.DeployModelResponse:
    """The same, as operators get it."""
    message = progress_to_proto(progress)
    return admin_pb2.DeployModelResponse(
        stage=message.stage,
        completed_bytes=message.completed_bytes,
        total_bytes=message.total_bytes,
        model=message.model if message.HasField("model") else None,
    )


def _profile_to_proto(profile: m.EngineProfile) -> model_pb2.EngineProfile:
    return model_pb2.EngineProfile(
        steps=[
            model_pb2.StepProfile(
                max_sequences=steps.max_sequences,
                prompts=steps.prompts,
                steps=steps.steps,
                prompt_tokens=steps.prompt_tokens,
                sampled_tokens=steps.sampled_tokens,
                schedule_s=steps.schedule_s,
                run_s=steps.run_s,
                sample_s=steps.sample_s,
                publish_s=steps.publish_s,
            )
            for steps in profile.steps
        ],
        cached_prompt_tokens=profile.cached_prompt_tokens,
        preemptions=profile.preemptions,
    )


def _profile_from_proto(message: model_pb2.EngineProfile) -> m.EngineProfile:
    return m.EngineProfile(
        steps=tuple(
            m.StepProfile(
                max_sequences=steps.max_sequences,
                prompts=steps.prompts,
                steps=steps.steps,
                prompt_tokens=steps.prompt_tokens,
                sampled_tokens=steps.sampled_tokens,
                schedule_s=steps.schedule_s,
                run_s=steps.run_s,
                sample_s=steps.sample_s,
                publish_s=steps.publish_s,
            )
            for steps in message.steps
        ),
        cached_prompt_tokens=message.cached_prompt_tokens,
        preemptions=message.preemptions,
    )
