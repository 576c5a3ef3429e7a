"""What may be wrong with the bodies that each address takes, for :mod:`tests.bad_requests`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from facade.options import COMPLETION_NO_OPS, NO_OPS, TOKENIZE_NO_OPS

MODEL = "smollm2:135m"

Types = Mapping[tuple[type, ...], tuple[str, ...]]
"""Fields by the types that they take."""
Values = Mapping[str, tuple[Any, ...]]
"""Values by the field that does not take them."""


@dataclass(frozen=True, slots=True)
class Address:
    """An address and its bodies."""

    path: str
    good: Mapping[str, Any]
    """A body that is answered."""
    types: Types
    out_of_range: Values
    refused: tuple[str, ...] = ()
    """Options that are refused by name."""
    share: int = 1
    """How many of the requests go here, against the shares of the others."""

    @property
    def fields(self) -> list[str]:
        """All names, one that is not known among them."""
        typed = {name for names in self.types.values() for name in names}
        return sorted({*typed, *self.out_of_range, *self.refused, "unknown"})


_NUMBERS = ("temperature", "top_p", "min_p", "presence_penalty", "frequency_penalty", "repetition_penalty")
_INTEGERS = ("top_k", "n", "seed", "max_tokens", "max_completion_tokens", "min_tokens", "priority")
_STRINGS = ("model", "cache_salt", "user", "regex", "grammar", "guided_regex", "guided_grammar")
_OBJECTS = ("logit_bias", "metadata", "response_format", "structured_outputs", "stream_options")
_ARRAYS = ("stop_token_ids", "choice", "guided_choice")

_GENERATION: Values = {
    "temperature": (-0.001, 2.001, 1e300, -(10**30), 10**400),
    "top_p": (0, -1, 1.0001),
    "min_p": (-0.1, 1.1),
    "presence_penalty": (-2.1, 2.1, 1e9),
    "frequency_penalty": (-2.1, 2.1),
    "repetition_penalty": (0, -1, 10.5),
    "top_k": (-1, 2**31, 10**30),
    "n": (0, -1, 129, 10**20),
    "seed": (2**63, -(2**63) - 1, 10**50),
    "max_tokens": (0, -1, 2**31),
    "max_completion_tokens": (0, -(10**18), 10**18),
    "min_tokens": (-1, 2**40),
    "priority": (-1, 101),
    "cache_salt": ("", "s" * 257),
    "stop": ("", ["a"] * 5, ["x" * 1025], [""], [None], [["a"]], {}, 7),
    "stop_token_ids": ([-1], [2**32], [1] * 257, ["1"], [None], [1.5]),
    "logit_bias": ({"x": 1}, {"-1": 1}, {"1": 101}, {"1": None}, {"1": "1"}, {"": 0}, {"1": 1, "01": 1}),
    "response_format": (
        {},
        {"type": None},
        {"type": "yaml"},
        {"type": "json_schema"},
        {"type": "json_schema", "json_schema": {"name": "a b", "schema": {}}},
        {"type": "json_schema", "json_schema": {"name": "a", "schema": []}},
        {"type": "json_schema", "json_schema": {"schema": {}}},
    ),
    "structured_outputs": ({"regex": 1}, {"choice": []}, {"json": 3}, {"json_object": False}, {"structural_tag": "x"}),
    "choice": ([], [""], [1], ["a"] * 1001),
    "guided_json": (1, [], True, ""),
    "stream_options": ({}, {"include_usage": True}),
}
_CONVERSATION: Values = {
    "tools": ([None], [{}], [{"type": "function"}], [{"type": "function", "function": {"name": "a b"}}]),
    "tool_choice": (7, [], "some", {"type": "function"}, {"type": "function", "function": {"name": "absent"}}),
    "messages": (
        [],
        [None],
        [[]],
        [{}],
        [{"role": "user"}],
        [{"role": "user", "content": None}],
        [{"role": "user", "content": []}],
        [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:,"}}]}],
        [{"role": "user", "content": [{"type": "text", "text": 1}]}],
        [{"role": "oracle", "content": "x"}],
        [{"role": "tool", "content": "x"}],
        [{"role": "user", "content": "x", "tool_calls": [{}]}],
        [{"role": "assistant", "tool_calls": [{"id": 1}]}],
        [{"role": "user", "content": "x", "name": {}}],
    ),
}
_PROMPTS: tuple[Any, ...] = (
    [],
    [None],
    [[]],
    [-1],
    [2**32],
    [True],
    ["a", 1],
    [1, "a"],
    ["a", [1]],
    [[1], []],
    ["a"] * 129,
    {},
    7,
    1.5,
)

ADDRESSES = (
    Address(
        path="/v1/chat/completions",
        good={"model": MODEL, "messages": [{"role": "user", "content": "x"}]},
        types={
            (int, float): _NUMBERS,
            (int,): (*_INTEGERS, "top_logprobs"),
            (bool,): ("stream", "logprobs", "ignore_eos", "parallel_tool_calls"),
            (str,): _STRINGS,
            (dict,): (*_OBJECTS, "chat_template_kwargs"),
            (list,): (*_ARRAYS, "messages", "tools"),
        },
        out_of_range={**_GENERATION, **_CONVERSATION, "top_logprobs": (1, 20, 21, -1)},
        refused=tuple(NO_OPS),
        share=4,
    ),
    Address(
        path="/v1/completions",
        good={"model": MODEL, "prompt": "x"},
        types={
            (int, float): _NUMBERS,
            (int,): (*_INTEGERS, "logprobs", "best_of"),
            (bool,): ("stream", "ignore_eos", "echo"),
            (str,): _STRINGS,
            (dict,): _OBJECTS,
            (list,): _ARRAYS,
        },
        out_of_range={**_GENERATION, "prompt": _PROMPTS, "logprobs": (-1, 6, 2**40), "best_of": (0, 2, -1)},
        refused=tuple(COMPLETION_NO_OPS),
        share=3,
    ),
    Address(
        path="/v1/tokenize",
        good={"model": MODEL, "messages": [{"role": "user", "content": "x"}]},
        types={
            (bool,): ("parallel_tool_calls",),
            (str,): ("model", "prompt"),
            (dict,): ("chat_template_kwargs",),
            (list,): ("messages", "tools"),
        },
        out_of_range={**_CONVERSATION, "model": ("",), "prompt": ("", "both")},
        refused=tuple(TOKENIZE_NO_OPS),
        share=2,
    ),
    Address(
        path="/v1/detokenize",
        good={"model": MODEL, "tokens": [1]},
        types={(str,): ("model",), (list,): ("tokens",)},
        out_of_range={"model": ("",), "tokens": ([], [-1], [2**32], ["1"], [None], [True], [1.5], [[1]])},
    ),
)
