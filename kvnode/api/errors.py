"""How a handler's refusal becomes a gRPC status: number and text, as etcd's clients know them.

Role: `Refused` is what a handler says instead of a response. Texts that the state machine and the
hot methods share stand in `base/codes`; here are the ones that only handlers need.
Callers: api/*.
"""

from __future__ import annotations

from kvnode.base.codes import STATUS, Code, Grpc
from kvnode.base.errors import CallerError


class Refused(CallerError):
    """A call ends with `status` (a gRPC code) and `text` instead of a response."""

    def __init__(self, status: Grpc, text: str) -> None:
        self.status = status
        self.text = text
        super().__init__(text)


def refusal(code: int, detail: bytes | str = "") -> Refused:
    """The Refused of a refusal code; `detail` is what the node added to it."""
    status, text = STATUS[Code(code)]
    more = detail.decode("utf-8", "replace") if isinstance(detail, bytes) else detail
    return Refused(status, f"{text}: {more}" if more else text)


def not_yet(what: str) -> Refused:
    """For an RPC of etcd's that this version does not serve."""
    return Refused(Grpc.UNIMPLEMENTED, f"kvnode: this version does not serve {what} yet")


AUTH_NOT_ENABLED = Refused(Grpc.FAILED_PRECONDITION, "etcdserver: authentication is not enabled")
"""etcd's answer to Authenticate while auth is off: clients then go on without a token."""

STOPPED = refusal(Code.STOPPED)
"""etcd's answer on streams that are open when the server stops."""

UNKNOWN_SERVICE = Refused(Grpc.NOT_FOUND, "unknown service")
"""The health service's answer for a service that is not registered."""
