"""Renders conversations where a template that hangs, grows or breaks out harms nobody.

Run as ``python -m`` by :mod:`runtime_server.models.renderer`. The first question is the template, a list of JSON: its
text and the special tokens. The others are pickled arguments of :meth:`ChatTemplate.render`; they come from the
runtime, which unpickles nothing that goes the other way. :mod:`runtime_server.models.rendered` has the answers.
"""

from __future__ import annotations

import encodings.unicode_escape
import html
import json
import pickle
import pprint
import textwrap

import jinja2.constants
import jinja2.debug

from mantler.errors import MantlerError
from runtime_server.limited.worker import serve
from runtime_server.models.errors import PullError
from runtime_server.models.rendered import REFUSED, RENDERED, UNREADABLE
from runtime_server.models.template import ChatTemplate

IMPORTED_EARLY = (encodings.unicode_escape, html, pprint, textwrap, jinja2.constants, jinja2.debug)
"""What jinja2 and the interpreter would import when they come to need it. Nothing can be opened by then."""


class _Renderer:
    """Takes the template, then renders with it."""

    def __init__(self) -> None:
        self._template: ChatTemplate | None = None

    def answer(self, question: bytes) -> bytes:
        try:
            if self._template is None:
                self._template = ChatTemplate(*json.loads(question))
                return RENDERED
            text = self._template.render(*pickle.loads(question))  # noqa: S301 - from the runtime
            return RENDERED + text.encode("utf-8", "surrogatepass")
        except PullError as error:
            return UNREADABLE + str(error).encode()
        except MantlerError as error:
            return REFUSED + json.dumps([error.param, error.message]).encode()


if __name__ == "__main__":
    serve(_Renderer().answer)
