"""A model in memory: its tokenizer, its engine and what they were made from."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Callable, Iterable
from collections.abc import Sequence as Items
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TypeVar, TypeVarTuple

from mantler.config import RuntimeSettings
from mantler.errors import invalid
from mantler.messages import (
    ChatPrompt,
    Constraint,
    Deployment,
    GenerateRequest,
    Prompt,
    TextPrompt,
    TokenPrompt,
    context_exceeded,
)
from runtime_server.backends.base import Backend
from runtime_server.backends.choice import load_backend, place
from runtime_server.chat.dialect import Reasoning
from runtime_server.constraints.compiler import Compiler
from runtime_server.constraints.outline import Outline, outline
from runtime_server.engine.blocks import BlockPool
from runtime_server.engine.engine import Engine
from runtime_server.engine.generation import Generation
from runtime_server.engine.output_text import OutputText
from runtime_server.engine.scheduler import Scheduler
from runtime_server.engine.sequence import Sequence
from runtime_server.models.manifest import Manifest
from runtime_server.models.renderer import Renderer
from runtime_server.models.tokenizer import Tokenizer

logger = logging.getLogger(__name__)

Args = TypeVarTuple("Args")
Result = TypeVar("Result")

TOKENIZER_THREADS = 2
"""Prompts that are tokenised at the same time, per model. Encoding releases the GIL."""
PROMPT_END_TOKENS = 16
"""So many tell whether a prompt begins the answer's reasoning."""


class DeployedModel:
    """Turns requests into generations.

    Args:
        tokenizer: of the model.
        renderer: of the model's conversations, started.
        engine: started.
        max_request_tokens: prompt and output of one request.
    """

    def __init__(
        self,
        *,
        manifest: Manifest,
        tokenizer: Tokenizer,
        renderer: Renderer,
        engine: Engine,
        deployment: Deployment,
        fingerprint: str,
    ) -> None:
        self.manifest = manifest
        self.max_request_tokens = deployment.max_request_tokens
        self.engine = engine
        self._deployment = deployment
        self._tokenizer = tokenizer
        self._renderer = renderer
        self._fingerprint = fingerprint
        self._longest_token = max(len(data) for data in tokenizer.token_bytes)
        self._constraints = Compiler(tokenizer, manifest.config.vocab_size, name=manifest.id)
        self._threads = ThreadPoolExecutor(TOKENIZER_THREADS, thread_name_prefix=f"tokenise {manifest.id}")

    async def generation(self, request: GenerateRequest) -> Generation:
        """The answer to ``request``, not submitted yet.

        Raises ``MantlerError``: the prompt is invalid or leaves no room for an answer.
        """
        prompt_ids = await self.tokenise(request.prompt)
        sequences = self._sequences(request, prompt_ids)
        reasoning = self._reasoning(request.prompt, prompt_ids)
        constraint = await self._constraint(request, reasoning)
        if constraint is not None:
            ends_early = not request.stop.ignore_eos
            for sequence in sequences:
                sequence.matcher = await self._constraints.matcher(constraint, ends_early=ends_early)
                sequence.replay()
        return Generation(
            self.engine,
            sequences,
            model=self.manifest.id,
            fingerprint=self._fingerprint,
            token_bytes=self._tokenizer.token_bytes,
            output=partial(self._output, request, reasoning),
        )

    async def tokenise(self, prompt: Prompt) -> list[int]:
        """Token ids of a prompt, the chat template applied. Raises ``MantlerError`` for one that is invalid."""
        match prompt:
            case TokenPrompt():
                return list(self._checked_ids(prompt.token_ids))
            case TextPrompt():
                self._refuse_hopeless([prompt.text])
                return await self._in_thread(self._tokenizer.encode, prompt.text)
            case ChatPrompt():
                self._refuse_hopeless(turn.content or "" for turn in prompt.messages)
                rendered = await self._renderer.render(prompt)
                # Calls, reasoning and tools count as well, where the template writes them.
                self._refuse_hopeless([rendered])
                return await self._in_thread(self._tokenizer.encode_chat, rendered)

    async def detokenise(self, tokens: TokenPrompt) -> str:
        """The text of ``tokens``, control tokens included. Raises ``MantlerError`` naming ``tokens``."""
        if len(tokens.token_ids) > self.max_request_tokens:
            raise invalid("tokens", f"must hold at most {self.max_request_tokens} token ids.")
        token_ids = self._checked_ids(tokens.token_ids, "tokens")
        return await self._in_thread(self._tokenizer.decode, token_ids)

    def deployment(self) -> Deployment:
        """What the model takes here, and how busy it is now."""
        return replace(
            self._deployment,
            slots_used=self.engine.running,
            queue_length=self.engine.waiting,
            held_tokens=self.engine.held_tokens,
            profile=self.engine.profile(),
        )

    async def close(self) -> None:
        """Stops the engine and frees its memory. Requests that still run fail."""
        await self.engine.close()
        await self._constraints.close()
        await self._renderer.close()
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _reasoning(self, prompt: Prompt, prompt_ids: list[int]) -> Reasoning:
        if not isinstance(prompt, ChatPrompt):
            return Reasoning.NONE
        return self._tokenizer.dialect.reasoning(self._tokenizer.decode(prompt_ids[-PROMPT_END_TOKENS:]))

    async def _constraint(self, request: GenerateRequest, reasoning: Reasoning) -> Constraint | Outline | None:
        """What the output must match."""
        if not isinstance(request.prompt, ChatPrompt):
            return request.constraint
        form = self._tokenizer.dialect.calls
        # Schemas of tools may be megabytes.
        wanted = await self._in_thread(outline, request.prompt, request.constraint, form, reasoning)
        if request.constraint is not None and wanted is not None and wanted.calls:
            # By itself, so that a fault is told of the field that it is in.
            await self._constraints.check(request.constraint)
        return wanted

    def _output(self, request: GenerateRequest, reasoning: Reasoning, sequence: Sequence) -> OutputText:
        """Reads one choice."""
        prompt, stop = request.prompt, request.stop
        chat = None
        if isinstance(prompt, ChatPrompt):
            # The same after the answer was cut off and went on elsewhere.
            identity = sequence.token_ids[: sequence.prompt_tokens].tobytes()
            identity += f"{request.request_id} {sequence.seed} {sequence.choice}".encode()
            chat = self._tokenizer.dialect.output(prompt, reasoning, identity)
        return OutputText(self._tokenizer.token_bytes, stop.stop_strings, min_tokens=stop.min_tokens, chat=chat)

    def _sequences(self, request: GenerateRequest, prompt_ids: list[int]) -> list[Sequence]:
        """One per choice."""
        places = self._deployment.slots + self._deployment.queue_capacity
        if request.n > places:
            raise invalid("n", f"must be at most {places}, since this model takes no more at once, got {request.n}.")
        self._checked_ids(tuple(token_id for token_id, _ in request.sampling.logit_bias), "logit_bias")
        if not prompt_ids:
            # A text of characters that the vocabulary lacks.
            raise invalid("prompt", "must hold at least one token.")
        limit = self.max_request_tokens
        room = limit - len(prompt_ids)
        if room < 1:
            raise context_exceeded(len(prompt_ids), limit)
        stop = request.stop
        for name, wanted in (("max_tokens", stop.max_tokens or 0), ("min_tokens", stop.min_tokens)):
            if wanted > room:
                raise invalid(
                    name,
                    f"must be at most {room} after a prompt of {len(prompt_ids)} tokens, since this model takes "
                    f"{limit} tokens per request here, got {wanted}.",
                )
        end_ids = set(self._checked_ids(stop.stop_token_ids, "stop_token_ids"))
        eos_ids = frozenset() if stop.ignore_eos else self._tokenizer.eos_ids
        # The choices draw different numbers from one seed.
        seed = secrets.randbits(64) if request.sampling.seed is None else request.sampling.seed
        sequences: list[Sequence] = []
        delivered, finished = self._resumed(request, stop.max_tokens or room)
        for choice in sorted(set(range(request.n)) - finished):
            sequences.append(
                Sequence(
                    prompt_ids=prompt_ids,
                    sampling=request.sampling,
                    seed=seed,
                    max_tokens=stop.max_tokens or room,
                    min_tokens=stop.min_tokens,
                    end_ids=eos_ids | end_ids,
                    choice=choice,
                    priority=request.priority,
                    cache_salt=request.cache_salt,
                    sibling=sequences[0] if sequences else None,
                    logprobs=request.logprobs,
                    delivered=delivered[choice],
                )
            )
        return sequences

    def _resumed(self, request: GenerateRequest, max_tokens: int) -> tuple[Items[Items[int]], frozenset[int]]:
        """What is there of each choice, and which of them are finished."""
        if request.resume is None:
            return [()] * request.n, frozenset()
        for token_ids in request.resume.delivered:
            self._checked_ids(token_ids, "resume.delivered")
            if len(token_ids) > max_tokens:
                raise invalid(
                    "resume.delivered", f"must have at most max_tokens ({max_tokens}) ids, got {len(token_ids)}."
                )
        return request.resume.delivered, request.resume.finished

    def _checked_ids(self, token_ids: tuple[int, ...], param: str = "prompt") -> tuple[int, ...]:
        vocab_size = self.manifest.config.vocab_size
        for token_id in token_ids:
            if token_id >= vocab_size:
                raise invalid(param, f"token ids must be below {vocab_size}, got {token_id}.")
        return token_ids

    async def _in_thread(self, function: Callable[[*Args], Result], *args: *Args) -> Result:
        return await asyncio.get_running_loop().run_in_executor(self._threads, function, *args)

    def _refuse_hopeless(self, texts: Iterable[str]) -> None:
        """Refuses text that cannot fit, before minutes are spent on tokenising it."""
        least = sum(len(text) for text in texts) // self._longest_token
        if least >= self.max_request_tokens:
            raise context_exceeded(least, self.max_request_tokens)


async def deploy(
    manifest: Manifest, folder: Path, settings: RuntimeSettings, *, reserved_bytes: int = 0
) -> DeployedModel:
    """Loads a converted model, in threads, and starts its engine and the process of its chat template.

    Args:
        reserved_bytes: of other models' caches on the processor.

    Raises: what ``place`` of :mod:`runtime_server.backends.choice` raises, ``PullError`` where the stored files are
    damaged.
    """
    placement = await asyncio.to_thread(place, manifest, settings, reserved_bytes=reserved_bytes)
    logger.info("%s runs on %s: %s", manifest.id, placement.device, placement.device.reason)
    tokenizer = await asyncio.to_thread(Tokenizer.load, folder)
    backend = asyncio.to_thread(load_backend, placement, manifest, folder, settings)
    renderer = Renderer(tokenizer.template)
    # At once, so that neither the load nor the first request waits for the process.
    loaded, fault = await asyncio.gather(backend, renderer.start(), return_exceptions=True)
    if isinstance(loaded, BaseException):
        await renderer.close()
        raise loaded
    if fault is not None:
        await renderer.close()
        loaded.close()
        raise fault
    return DeployedModel(
        manifest=manifest,
        tokenizer=tokenizer,
        renderer=renderer,
        engine=start_engine(loaded, settings, name=manifest.id),
        deployment=Deployment(
            max_request_tokens=placement.plan.max_request_tokens,
            slots=settings.max_batch,
            slots_used=0,
            queue_capacity=settings.max_queue,
            queue_length=0,
            kv_cache_bytes=loaded.kv_cache_bytes,
            device=loaded.device,
        ),
        fingerprint=manifest.fingerprint,
    )


def start_engine(backend: Backend, settings: RuntimeSettings, *, name: str) -> Engine:
    """An engine that runs on ``backend``, closes it in the end, and calls its sinks on the running event loop."""
    scheduler = Scheduler(
        BlockPool(backend.blocks, backend.block_tokens),
        max_batch=settings.max_batch,
        max_queue=settings.max_queue,
        # A piece of a prompt fills one block of the device at least.
        prefill_chunk=max(settings.prefill_chunk, backend.block_tokens),
    )
    engine = Engine(backend, scheduler, name=name, loop=asyncio.get_running_loop())
    engine.start()
    return engine
