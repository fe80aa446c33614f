"""From a call's bytes to a handler's messages and back.

Role: `serve` registers a handler of one method with the HTTP/2 floor. A handler sees a decoded
request and an `Answer`; it may answer now or later, once, and raise `Refused` before.
Callers: the modules of this room with handlers, and `attach`.

Invariants:
  1. Nothing is sent on a call that is gone, and a call is finished once.
  2. A message that does not decode ends its call; a handler never sees it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, Protocol

from google.protobuf.message import DecodeError, Message

from kvnode.api.errors import Refused, refusal
from kvnode.api.service import RPCS, Rpc
from kvnode.base.codes import Code, Grpc

log = logging.getLogger("api")


class Call(Protocol):
    """A call as the HTTP/2 floor hands it over (`h2.PyCall`)."""

    on_message: Callable[[bytes], None]
    on_half_close: Callable[[], None]
    on_gone: Callable[[], None]

    def send(self, message: bytes) -> None: ...
    def finish(self, status: int = 0, text: str = "") -> None: ...


class Router(Protocol):
    """Where handlers are registered (`h2.Http2`)."""

    def route_python(
        self,
        path: str,
        handler: Callable[[Any], None],
        client_streams: bool = False,
        server_streams: bool = False,
    ) -> None: ...


class Answer:
    """The way back of one call."""

    def __init__(self, call: Call) -> None:
        self._call = call
        self.open = True
        """False once the call is finished or gone."""
        self.on_gone: Callable[[], None] = lambda: None
        call.on_gone = self._gone

    def _gone(self) -> None:
        self.open = False
        self.on_gone()

    def send(self, response: Message) -> None:
        """One message of a stream."""
        if self.open:
            self._call.send(response.SerializeToString())

    def send_raw(self, response: bytes) -> None:
        """One message that is encoded already."""
        if self.open:
            self._call.send(response)

    def finish(self) -> None:
        """The end of a stream, without an error."""
        if self.open:
            self.open = False
            self._call.finish(0, "")

    def end(self, response: Message | bytes) -> None:
        """The response of a unary call."""
        self.send_raw(response) if isinstance(response, bytes) else self.send(response)
        self.finish()

    def refuse(self, refused: Refused) -> None:
        """Ends the call with a refusal."""
        if self.open:
            self.open = False
            self._call.finish(int(refused.status), refused.text)

    def settle(self, code: int, body: bytes) -> None:
        """Ends a unary call with what a proposal came to."""
        self.refuse(refusal(code, body)) if code != Code.OK else self.end(body)


Handler = Callable[[Any, Answer], None]
"""handler(request, answer)"""


def guard(answer: Answer, work: Callable[[], None]) -> None:
    """Runs a handler's code: `Refused` ends the call, a mistake of ours ends it as INTERNAL."""
    try:
        work()
    except Refused as refused:
        answer.refuse(refused)
    except Exception:
        log.exception("a handler failed")
        answer.refuse(Refused(Grpc.INTERNAL, "kvnode: the handler failed, see the node's log"))


def decode(rpc: Rpc, data: bytes) -> Message:
    """The request, or Refused."""
    try:
        return rpc.request.FromString(data)
    except DecodeError:
        raise refusal(Code.MALFORMED) from None


def serve(router: Router, path: str, handler: Handler) -> None:
    """Registers the handler of a method whose client sends one message."""
    rpc = RPCS[path]
    assert not rpc.client_streams

    def begin(call: Call) -> None:
        answer = Answer(call)
        call.on_message = lambda data: guard(answer, lambda: handler(decode(rpc, data), answer))

    router.route_python(path, begin, False, rpc.server_streams)


def serve_stream(
    router: Router, path: str, handler: Handler, ended: Callable[[Answer], None] = Answer.finish
) -> None:
    """Registers the handler of a method whose client streams; it is called once a message.

    `ended`: what to do when the client sends no more.
    """
    rpc = RPCS[path]
    assert rpc.client_streams

    def begin(call: Call) -> None:
        answer = Answer(call)
        call.on_message = lambda data: guard(answer, lambda: handler(decode(rpc, data), answer))
        call.on_half_close = lambda: ended(answer)

    router.route_python(path, begin, True, rpc.server_streams)


def refuse_all(router: Router, path: str, refused: Refused) -> None:
    """Registers a method whose calls all end with this refusal, before a message is read."""
    rpc = RPCS[path]
    router.route_python(
        path,
        lambda call: call.finish(int(refused.status), refused.text),
        rpc.client_streams,
        rpc.server_streams,
    )
