"""Protobuf messages to plain values and back, for both sides of the seam.

Nothing else in the project touches a field of a protobuf message. What a later version of the protos can say
and this version cannot do is refused here by name (:func:`_refuse_unsupported`), never ignored.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import assert_never

from google.protobuf import json_format

from mantler import constraints as c
from mantler import messages as m
from mantler.errors import invalid, unsupported
from mantler.tools import ToolCall
from mantler.tools_wire import (
    call_delta_from_proto,
    call_delta_to_proto,
    choice_from_proto,
    choice_to_proto,
    tool_from_proto,
    tool_to_proto,
)
from mantler.v1 import chat_pb2, generation_pb2, model_pb2

_ROLES = {
    m.Role.SYSTEM: chat_pb2.ROLE_SYSTEM,
    m.Role.DEVELOPER: chat_pb2.ROLE_DEVELOPER,
    m.Role.USER: chat_pb2.ROLE_USER,
    m.Role.ASSISTANT: chat_pb2.ROLE_ASSISTANT,
    m.Role.TOOL: chat_pb2.ROLE_TOOL,
}
_ROLES_BACK = {number: role for role, number in _ROLES.items()}

_REASONS = {
    m.FinishReason.STOP: generation_pb2.FINISH_REASON_STOP,
    m.FinishReason.LENGTH: generation_pb2.FINISH_REASON_LENGTH,
    m.FinishReason.TOOL_CALLS: generation_pb2.FINISH_REASON_TOOL_CALLS,
    m.FinishReason.CONTENT_FILTER: generation_pb2.FINISH_REASON_CONTENT_FILTER,
}
_REASONS_BACK = {number: reason for reason, number in _REASONS.items()}

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


def request_to_proto(request: m.GenerateRequest) -> generation_pb2.GenerateRequest:
    """A request for the wire."""
    message = generation_pb2.GenerateRequest(request_id=request.request_id, model=request.model)
    prompt = request.prompt
    match prompt:
        case m.ChatPrompt():
            message.chat.CopyFrom(chat_to_proto(prompt))
        case m.TextPrompt():
            message.text = prompt.text
        case m.TokenPrompt():
            message.token_ids.ids.extend(prompt.token_ids)
        case _:
            assert_never(prompt)
    sampling = request.sampling
    message.sampling.temperature = sampling.temperature
    message.sampling.top_p = sampling.top_p
    message.sampling.top_k = sampling.top_k
    message.sampling.min_p = sampling.min_p
    if sampling.seed is not None:
        message.sampling.seed = sampling.seed
    message.sampling.presence_penalty = sampling.presence_penalty
    message.sampling.frequency_penalty = sampling.frequency_penalty
    message.sampling.repetition_penalty = sampling.repetition_penalty
    message.sampling.logit_bias.update(sampling.logit_bias)
    stop = request.stop
    if stop.max_tokens is not None:
        message.stop.max_tokens = stop.max_tokens
    message.stop.min_tokens = stop.min_tokens
    message.stop.stop_strings.extend(stop.stop_strings)
    message.stop.stop_token_ids.extend(stop.stop_token_ids)
    message.stop.ignore_eos = stop.ignore_eos
    if request.logprobs is not None:
        message.logprobs.top_logprobs = request.logprobs.top
    message.n = request.n
    message.priority = request.priority
    if request.cache_salt is not None:
        message.cache_salt = request.cache_salt
    if request.constraint is not None:
        _write_constraint(message, request.constraint)
    return message


def request_from_proto(message: generation_pb2.GenerateRequest) -> m.GenerateRequest:
    """A request off the wire. Raises ``MantlerError`` naming the field that is bad or not supported."""
    _refuse_unsupported(message)
    return m.GenerateRequest(
        request_id=message.request_id,
        model=message.model,
        prompt=_prompt_from_proto(message),
        sampling=_sampling_from_proto(message.sampling),
        stop=_stop_from_proto(message.stop),
        logprobs=m.LogprobsParams(message.logprobs.top_logprobs) if message.HasField("logprobs") else None,
        n=message.n if message.HasField("n") else 1,
        priority=message.priority,
        cache_salt=message.cache_salt if message.HasField("cache_salt") else None,
        constraint=_constraint_from_proto(message),
    )


def chat_to_proto(prompt: m.ChatPrompt) -> chat_pb2.ChatPrompt:
    """A conversation for the wire."""
    chat = chat_pb2.ChatPrompt(
        tools=[tool_to_proto(tool) for tool in prompt.tools],
        tool_choice=choice_to_proto(prompt.tool_choice),
        parallel_tool_calls=prompt.parallel_tool_calls,
    )
    if prompt.template_variables:
        json_format.ParseDict(dict(prompt.template_variables), chat.template_variables)
    for turn in prompt.messages:
        added = chat.messages.add(
            role=_ROLES[turn.role], name=turn.name, tool_call_id=turn.tool_call_id, reasoning=turn.reasoning
        )
        for call in turn.tool_calls:
            added.tool_calls.add(id=call.id, name=call.name, arguments=call.arguments)
        if turn.content is not None:
            added.content.add(text=turn.content)
    return chat


def count_request_to_proto(
    model: str, prompt: m.ChatPrompt | m.TextPrompt, *, include_token_ids: bool
) -> generation_pb2.CountTokensRequest:
    """A prompt whose tokens are to be counted, for the wire."""
    message = generation_pb2.CountTokensRequest(model=model, include_token_ids=include_token_ids)
    if isinstance(prompt, m.ChatPrompt):
        message.chat.CopyFrom(chat_to_proto(prompt))
    else:
        message.text = prompt.text
    return message


def count_request_from_proto(message: generation_pb2.CountTokensRequest) -> m.ChatPrompt | m.TextPrompt:
    """The prompt whose tokens are to be counted."""
    match message.WhichOneof("prompt"):
        case "chat":
            return _chat_from_proto(message.chat)
        case "text":
            return m.TextPrompt(message.text)
        case _:
            raise invalid("prompt", "must be set: chat or text.")


def event_to_proto(event: m.Event) -> generation_pb2.GenerateResponse:
    """An event for the wire."""
    message = generation_pb2.GenerateResponse(seq=event.seq, index=event.index)
    body = event.body
    match body:
        case m.Delta():
            message.delta.text = body.text
            message.delta.token_ids.extend(body.token_ids)
            if body.reasoning:
                message.delta.reasoning = body.reasoning
            if body.tool_calls:
                message.delta.tool_calls.extend(call_delta_to_proto(part) for part in body.tool_calls)
            if body.logprobs:
                message.delta.logprobs.extend(_logprob_to_proto(entry) for entry in body.logprobs)
        case m.Started():
            message.started.model = body.model
            message.started.prompt_tokens = body.prompt_tokens
            message.started.cached_prompt_tokens = body.cached_prompt_tokens
            message.started.fingerprint = body.fingerprint
        case m.Finished():
            message.finished.reason = _REASONS[body.reason]
            message.finished.usage.prompt_tokens = body.usage.prompt_tokens
            message.finished.usage.cached_prompt_tokens = body.usage.cached_prompt_tokens
            message.finished.usage.completion_tokens = body.usage.completion_tokens
            message.finished.usage.reasoning_tokens = body.usage.reasoning_tokens
            if body.stop_string is not None:
                message.finished.stop_string = body.stop_string
            elif body.stop_token_id is not None:
                message.finished.stop_token_id = body.stop_token_id
        case _:
            assert_never(body)
    return message


def event_from_proto(message: generation_pb2.GenerateResponse) -> m.Event:
    """An event off the wire. Raises ``ValueError`` for one that this version does not know."""
    return m.Event(seq=message.seq, index=message.index, body=_event_body(message))


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


def progress_from_proto(message: model_pb2.LoadModelResponse) -> m.LoadProgress:
    """A load's progress off the wire."""
    return m.LoadProgress(
        stage=_STAGES_BACK[message.stage],
        completed_bytes=message.completed_bytes,
        total_bytes=message.total_bytes,
        model=model_from_proto(message.model) if message.HasField("model") else None,
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


def _refuse_unsupported(message: generation_pb2.GenerateRequest) -> None:
    if message.HasField("resume"):
        raise unsupported("resume")


def _prompt_from_proto(message: generation_pb2.GenerateRequest) -> m.Prompt:
    match message.WhichOneof("prompt"):
        case "chat":
            return _chat_from_proto(message.chat)
        case "text":
            return m.TextPrompt(message.text)
        case "token_ids":
            return m.TokenPrompt(tuple(message.token_ids.ids))
        case _:
            raise invalid("prompt", "must be set: chat, text or token_ids.")


def _write_constraint(message: generation_pb2.GenerateRequest, constraint: c.Constraint) -> None:
    match constraint:
        case c.JsonSchemaConstraint():
            message.json_schema = constraint.schema
        case c.JsonObjectConstraint():
            message.json_object.SetInParent()
        case c.RegexConstraint():
            message.regex = constraint.pattern
        case c.GrammarConstraint():
            message.grammar = constraint.grammar
        case c.ChoiceConstraint():
            message.choice.values.extend(constraint.values)


def _constraint_from_proto(message: generation_pb2.GenerateRequest) -> c.Constraint | None:
    match message.WhichOneof("constraint"):
        case "json_schema":
            return c.JsonSchemaConstraint(message.json_schema)
        case "json_object":
            return c.JsonObjectConstraint()
        case "regex":
            return c.RegexConstraint(message.regex)
        case "grammar":
            return c.GrammarConstraint(message.grammar)
        case "choice":
            return c.ChoiceConstraint(tuple(message.choice.values))
        case None:
            return None


def _chat_from_proto(chat: chat_pb2.ChatPrompt) -> m.ChatPrompt:
    return m.ChatPrompt(
        messages=tuple(_turn_from_proto(i, turn) for i, turn in enumerate(chat.messages)),
        tools=tuple(tool_from_proto(tool) for tool in chat.tools),
        tool_choice=choice_from_proto(chat.tool_choice),
        parallel_tool_calls=chat.parallel_tool_calls if chat.HasField("parallel_tool_calls") else True,
        template_variables=_variables_from_proto(chat),
    )


def _variables_from_proto(chat: chat_pb2.ChatPrompt) -> dict[str, object]:
    try:
        variables: dict[str, object] = json_format.MessageToDict(chat.template_variables)
    except (json_format.Error, ValueError) as error:
        raise invalid("template_variables", "must hold JSON values; numbers must be finite.") from error
    return variables


def _turn_from_proto(position: int, turn: chat_pb2.ChatMessage) -> m.ChatMessage:
    where = f"messages[{position}]"
    role = _ROLES_BACK.get(turn.role)
    if role is None:
        raise invalid(f"{where}.role", "must be system, developer, user, assistant or tool.")
    parts: list[str] = []
    for part in turn.content:
        kind = part.WhichOneof("part")
        if kind != "text":
            raise unsupported(f"{where}.content", f"of kind {kind or 'unset'} is not supported by a text model")
        parts.append(part.text)
    return m.ChatMessage(
        role=role,
        content="".join(parts) if turn.content else None,
        name=turn.name if turn.HasField("name") else None,
        tool_calls=tuple(ToolCall(call.id, call.name, call.arguments) for call in turn.tool_calls),
        tool_call_id=turn.tool_call_id if turn.HasField("tool_call_id") else None,
        reasoning=turn.reasoning if turn.HasField("reasoning") else None,
    )


def _sampling_from_proto(options: generation_pb2.SamplingOptions) -> m.SamplingParams:
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


def _stop_from_proto(options: generation_pb2.StopOptions) -> m.StopParams:
    return m.StopParams(
        max_tokens=options.max_tokens if options.HasField("max_tokens") else None,
        min_tokens=options.min_tokens,
        stop_strings=tuple(options.stop_strings),
        stop_token_ids=tuple(options.stop_token_ids),
        ignore_eos=options.ignore_eos,
    )


def _logprob_to_proto(entry: m.TokenLogprob) -> generation_pb2.TokenLogprob:
    return generation_pb2.TokenLogprob(
        chosen=_candidate_to_proto(entry.chosen), top=[_candidate_to_proto(candidate) for candidate in entry.top]
    )


def _logprob_from_proto(entry: generation_pb2.TokenLogprob) -> m.TokenLogprob:
    return m.TokenLogprob(
        chosen=_candidate_from_proto(entry.chosen),
        top=tuple(_candidate_from_proto(candidate) for candidate in entry.top),
    )


def _candidate_to_proto(candidate: m.TokenCandidate) -> generation_pb2.TokenCandidate:
    return generation_pb2.TokenCandidate(
        token_id=candidate.token_id, bytes=candidate.token_bytes, logprob=candidate.logprob
    )


def _candidate_from_proto(candidate: generation_pb2.TokenCandidate) -> m.TokenCandidate:
    return m.TokenCandidate(candidate.token_id, candidate.bytes, candidate.logprob)


def _event_body(message: generation_pb2.GenerateResponse) -> m.Started | m.Delta | m.Finished:
    match message.WhichOneof("event"):
        case "delta":
            return m.Delta(
                text=message.delta.text,
                token_ids=tuple(message.delta.token_ids),
                logprobs=tuple(_logprob_from_proto(entry) for entry in message.delta.logprobs),
                tool_calls=tuple(call_delta_from_proto(part) for part in message.delta.tool_calls),
                reasoning=message.delta.reasoning,
            )
        case "started":
            started = message.started
            return m.Started(
                model=started.model,
                prompt_tokens=started.prompt_tokens,
                cached_prompt_tokens=started.cached_prompt_tokens,
                fingerprint=started.fingerprint,
            )
        case "finished":
            finished = message.finished
            return m.Finished(
                reason=_REASONS_BACK[finished.reason],
                usage=m.Usage(
                    prompt_tokens=finished.usage.prompt_tokens,
                    completion_tokens=finished.usage.completion_tokens,
                    cached_prompt_tokens=finished.usage.cached_prompt_tokens,
                    reasoning_tokens=finished.usage.reasoning_tokens,
                ),
                stop_string=finished.stop_string if finished.HasField("stop_string") else None,
                stop_token_id=finished.stop_token_id if finished.HasField("stop_token_id") else None,
            )
        case kind:
            raise ValueError(f"unknown event {kind!r} in a generation stream")
