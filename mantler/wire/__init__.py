"""Protobuf messages to plain values and back, for both sides of the seam.

Nothing else in the project touches a field of a protobuf message. What a later version of the protos can say
and this version cannot do is refused here by name, never ignored.
"""

from mantler.wire.chat import chat_to_proto
from mantler.wire.events import event_from_proto, event_to_proto
from mantler.wire.machines import (
    load_from_proto,
    load_to_proto,
    machine_from_proto,
    machine_to_proto,
    status_from_proto,
    status_to_proto,
)
from mantler.wire.models import (
    deploy_progress_to_proto,
    model_from_proto,
    model_to_proto,
    progress_from_proto,
    progress_to_proto,
)
from mantler.wire.request import (
    count_request_from_proto,
    count_request_to_proto,
    request_from_proto,
    request_to_proto,
)

__all__ = [
    "chat_to_proto",
    "count_request_from_proto",
    "count_request_to_proto",
    "deploy_progress_to_proto",
    "event_from_proto",
    "event_to_proto",
    "load_from_proto",
    "load_to_proto",
    "machine_from_proto",
    "machine_to_proto",
    "model_from_proto",
    "model_to_proto",
    "progress_from_proto",
    "progress_to_proto",
    "request_from_proto",
    "request_to_proto",
    "status_from_proto",
    "status_to_proto",
]
