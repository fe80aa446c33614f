"""The three families of errors: the caller's fault, the peer's fault, the disk's fault.

Programmer errors are assertions; the node refuses to start with them switched off.
"""

from __future__ import annotations

from kvnode.base.codes import STATUS, Code


class KvnodeError(Exception):
    """Root of all errors that kvnode raises on purpose."""


class CallerError(KvnodeError):
    """The caller asked for something that can't be done; the text says what to do."""


class RequestError(CallerError):
    """A request was refused by the node.

    `code` is the refusal code, `text` the sentence a gRPC client would see, `detail` what the
    node added to it.
    """

    def __init__(self, code: Code, detail: str = "") -> None:
        self.code = code
        self.grpc, self.text = STATUS[code]
        self.detail = detail
        super().__init__(f"{self.text}: {detail}" if detail else self.text)


class ConfigError(CallerError):
    """A flag, variable or file value is not usable."""


class PeerError(KvnodeError):
    """The other side of a connection broke the protocol; the connection ends."""


class DecodeError(PeerError):
    """Bytes are not what their frame or kind says."""


class UnavailableError(PeerError):
    """No node answered in time; whether a write without a session was applied is not known."""


class DiskError(KvnodeError):
    """The disk failed or holds something that must not be trusted."""


class CorruptionError(DiskError):
    """Stored bytes are damaged where they were known to be durable.

    `path` and `offset` (bytes) say where; the text says what to do.
    """

    def __init__(self, text: str, path: str = "", offset: int = 0) -> None:
        self.path = path
        self.offset = offset
        super().__init__(f"{path}: offset {offset}: {text}" if path else text)
