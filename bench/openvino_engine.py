"""OpenVINO GenAI's continuous batching behind three verbs. Runs in an environment of its own, with openvino-genai."""

from __future__ import annotations

import time
from dataclasses import dataclass

import openvino_genai as ov

CACHE_GB = 2
"""Of keys and values. It is only resident where it is used."""


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """How the pipeline is made."""

    gguf: str
    threads: int
    slots: int
    prefix_cache: bool


@dataclass(frozen=True, slots=True)
class Output:
    """What a step has made for one request."""

    request: int
    token_ids: tuple[int, ...]
    finished: bool
    at: float
    """When the step was over, by ``time.perf_counter``."""


class Engine:
    """The pipeline, used by one thread. ``step`` keeps Python's lock for as long as it computes."""

    def __init__(self, settings: EngineSettings) -> None:
        config = ov.SchedulerConfig()
        config.cache_size = CACHE_GB
        config.max_num_seqs = settings.slots
        config.dynamic_split_fuse = True
        config.enable_prefix_caching = settings.prefix_cache
        self._pipeline = ov.ContinuousBatchingPipeline(
            settings.gguf, config, "CPU", {"INFERENCE_NUM_THREADS": settings.threads}
        )
        self._tokenizer = self._pipeline.get_tokenizer()
        self._open: dict[int, ov.GenerationHandle] = {}

    @property
    def busy(self) -> bool:
        """Whether there is anything to compute."""
        return bool(self._open)

    def vocabulary(self) -> dict[int, bytes]:
        """The text of each token."""
        return {number: text for text, number in self._tokenizer.get_vocab().items()}

    def add(self, request: int, messages: list[dict[str, str]], max_tokens: int) -> int:
        """Queues a greedy completion that ignores the end of sequence. Returns the length of its prompt in tokens."""
        prompt = self._tokenizer.apply_chat_template(messages, add_generation_prompt=True)
        tokens = self._tokenizer.encode([prompt], add_special_tokens=False).input_ids
        config = ov.GenerationConfig()
        config.max_new_tokens = max_tokens
        config.ignore_eos = True
        config.do_sample = False
        self._open[request] = self._pipeline.add_request(request, tokens, config)
        return int(tokens.shape[1])

    def cancel(self, request: int) -> None:
        """Forgets a request; none is fine, too."""
        handle = self._open.pop(request, None)
        if handle is not None:
            handle.cancel()

    def step(self) -> list[Output]:
        """Computes one step for all requests."""
        self._pipeline.step()
        now = time.perf_counter()
        made = []
        for request, handle in list(self._open.items()):
            finished = handle.get_status() != ov.GenerationStatus.RUNNING
            token_ids = tuple(
                token
                for _ in iter(handle.can_read, False)
                for output in handle.read().values()
                for token in output.generated_ids
            )
            if finished:
                del self._open[request]
            if token_ids or finished:
                made.append(Output(request, token_ids, finished, now))
        return made
