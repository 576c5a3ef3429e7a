"""Finds tool calls in a stream of text, across the borders of its pieces."""

from __future__ import annotations

import hashlib
import itertools
import json
import string
from collections.abc import Collection, Iterator
from enum import Enum, auto
from typing import Any

import regex

from mantler.messages import ToolCallDelta
from runtime_server.chat.formats import CallFormat

MAX_HEAD_CHARS = 1024
"""From the opening of a call to its arguments. What is longer is no call."""
ID_CHARS = 24

_ALPHABET = string.ascii_letters + string.digits
_STRING = r'"(?:[^"\\]|\\.)*+"'
_UNDECIDED = object()
"""More text decides."""
_MEMBERS = rf'(?:"type"\s*+:\s*+"function"\s*+,\s*+)?(?:"id"\s*+:\s*+{_STRING}\s*+,\s*+)?'


def call_ids(identity: bytes) -> Iterator[str]:
    """``call_`` and 24 letters and digits each, which nobody else's calls have, and this answer's have each time."""
    for number in itertools.count():
        digest = hashlib.blake2b(identity, digest_size=32, salt=number.to_bytes(16)).digest()
        yield "call_" + "".join(_ALPHABET[byte % len(_ALPHABET)] for byte in digest[:ID_CHARS])


class _State(Enum):
    START = auto()
    TEXT = auto()
    HEAD = auto()
    ARGUMENTS = auto()
    TAIL = auto()
    NEXT = auto()
    ENDED = auto()


class ToolCallParser:
    """Splits text into content and tool calls. How the text is cut into pieces makes no difference.

    A call counts once its head is there: its opening, the name of a known function and the brace of the arguments,
    which stream from then on exactly as the model writes them. The name must stand before the arguments, as models
    are trained to write it. Whatever turns out not to be a call is content. White space around calls is dropped.

    Args:
        names: of the functions that may be called.
        parallel: whether more than one call counts; otherwise the first call ends the output.
        ids: of the calls.
    """

    def __init__(
        self,
        form: CallFormat,
        names: Collection[str],
        *,
        parallel: bool = True,
        ids: Iterator[str],
    ) -> None:
        self._form = form
        self._names = frozenset(names)
        self._parallel = parallel
        self._ids = ids
        opening, before, between, closing = map(regex.escape, (form.opening, form.before, form.between, form.closing))
        member = rf'\{{\s*+{_MEMBERS}"name"\s*+:\s*+({_STRING})\s*+,\s*+"{form.arguments_key}"\s*+:\s*+\{{'
        self._opened_head = regex.compile(rf"{opening}\s*+{before}\s*+{member}", regex.DOTALL)
        self._bare_head = regex.compile(rf"\s*+{member}", regex.DOTALL)
        self._next_head = regex.compile(rf"\s*+{between}\s*+{member}", regex.DOTALL) if between else None
        self._tail = regex.compile(rf'\s*+(?:,\s*+"id"\s*+:\s*+{_STRING}\s*+)?\}}', regex.DOTALL)
        self._closing = regex.compile(rf"\s*+{closing}") if closing else None
        self._state = _State.START if form.bare else _State.TEXT
        self._held = ""
        """What was fed and is not decided."""
        self._space = ""
        """White space that is dropped where a call follows."""
        self._scanner = _ObjectScanner()
        self._content: list[str] = []
        self._deltas: list[ToolCallDelta] = []
        self._said_since_call = False
        self.calls = 0
        """Calls so far."""

    @property
    def ended(self) -> bool:
        """Whether the one call that is allowed is over, and with it the output."""
        return self._state is _State.ENDED

    @property
    def holds(self) -> int:
        """Characters that wait for what follows to be known."""
        return len(self._held) + len(self._space)

    def feed(self, text: str) -> tuple[str, tuple[ToolCallDelta, ...]]:
        """Takes the next piece; returns the content and the parts of calls that are certain now."""
        self._held += text
        return self._run(final=False)

    def flush(self) -> tuple[str, tuple[ToolCallDelta, ...]]:
        """What was held back. The stream is over after it."""
        content, deltas = self._run(final=True)
        if self._said_since_call or not self.calls:
            content += self._space
        return content, deltas

    def _run(self, *, final: bool) -> tuple[str, tuple[ToolCallDelta, ...]]:
        steps = {
            _State.START: self._start,
            _State.TEXT: self._text,
            _State.HEAD: self._read_head,
            _State.ARGUMENTS: self._arguments,
            _State.TAIL: self._read_tail,
            _State.NEXT: self._next,
            _State.ENDED: self._drop,
        }
        while self._held and steps[self._state](final):
            pass
        content, deltas = "".join(self._content), tuple(self._deltas)
        self._content, self._deltas = [], []
        return content, deltas

    # Each step says whether it got on; where it did not, it waits for more text.

    def _start(self, final: bool) -> bool:
        match = self._match(self._bare_head, final)
        if match is _UNDECIDED:
            return False
        if not self._begin(match):
            self._state = _State.TEXT
        return True

    def _text(self, final: bool) -> bool:
        at = self._held.find(self._form.opening)
        if at >= 0:
            self._say(at)
            self._state = _State.HEAD
            return True
        kept = 0 if final else _overlap(self._held, self._form.opening)
        self._say(len(self._held) - kept)
        return False

    def _read_head(self, final: bool) -> bool:
        match = self._match(self._opened_head, final)
        if match is _UNDECIDED:
            return False
        if not self._begin(match):
            # No call begins here, but one may begin behind the first character.
            self._say(1)
            self._state = _State.TEXT
        return True

    def _arguments(self, final: bool) -> bool:
        end = self._scanner.feed(self._held)
        self._deltas.append(ToolCallDelta(self.calls - 1, self._held[:end]))
        self._held = self._held[end:]
        if self._scanner.closed:
            self._state = _State.TAIL if self._parallel else _State.ENDED
        return True

    def _read_tail(self, final: bool) -> bool:
        return self._skip(self._tail, _State.NEXT, final)

    def _next(self, final: bool) -> bool:
        if self._next_head is not None:
            match = self._match(self._next_head, final)
            if match is _UNDECIDED:
                return False
            if self._begin(match):
                return True
        if self._closing is None:
            self._state = _State.TEXT
            return True
        return self._skip(self._closing, _State.TEXT, final)

    def _skip(self, pattern: regex.Pattern[str], then: _State, final: bool) -> bool:
        """Drops what belongs to a call's end. Where it is missing, what stands there instead is not lost."""
        match = self._match(pattern, final)
        if match is _UNDECIDED:
            return False
        if match is not None:
            self._held = self._held[match.end() :]
        self._state = then
        return True

    def _match(self, pattern: regex.Pattern[str], final: bool) -> Any:
        """A match at the beginning of what is held, ``None``, or ``_UNDECIDED``. The cut makes the outcome the
        same however the text arrives."""
        text = self._held[:MAX_HEAD_CHARS]
        match = pattern.match(text, partial=True)
        if match is None or not match.partial:
            return match
        return None if final or len(text) == MAX_HEAD_CHARS else _UNDECIDED

    def _begin(self, head: regex.Match[str] | None) -> bool:
        """Begins the call of ``head``, if it is one."""
        name = None if head is None else _name(head[1])
        if head is None or name not in self._names:
            return False
        self._held = self._held[head.end() - 1 :]
        self._space = ""
        self._said_since_call = False
        self._deltas.append(ToolCallDelta(self.calls, id=next(self._ids), name=name))
        self.calls += 1
        self._scanner = _ObjectScanner()
        self._state = _State.ARGUMENTS
        return True

    def _drop(self, final: bool) -> bool:
        self._held = ""
        return False

    def _say(self, count: int) -> None:
        """Gives ``count`` characters out as content, but for white space at their end."""
        text = self._space + self._held[:count]
        self._held = self._held[count:]
        said = text.rstrip()
        self._space = text[len(said) :]
        if said:
            self._content.append(said)
            self._said_since_call = True


class _ObjectScanner:
    """Finds the end of a JSON object by its brackets, not by its grammar: arguments are the model's own text."""

    def __init__(self) -> None:
        self._depth = 0
        self._in_string = False
        self._escaped = False
        self.closed = False

    def feed(self, text: str) -> int:
        """How many characters of ``text`` belong to the object."""
        for position, character in enumerate(text):
            if self._escaped:
                self._escaped = False
            elif self._in_string:
                self._escaped = character == "\\"
                self._in_string = character != '"'
            elif character == '"':
                self._in_string = True
            elif character in "{[":
                self._depth += 1
            elif character in "}]":
                self._depth -= 1
                if self._depth == 0:
                    self.closed = True
                    return position + 1
        return len(text)


def _name(text: str) -> str | None:
    try:
        return str(json.loads(text))
    except ValueError:
        return None


def _overlap(text: str, opening: str) -> int:
    """Length of the longest end of ``text`` that ``opening`` begins with."""
    return next((n for n in range(min(len(text), len(opening) - 1), 0, -1) if text.endswith(opening[:n])), 0)
