"""What the command line says when something is wrong: exit statuses and next steps.

Callers: every command. The statuses are etcdctl's.
"""

from __future__ import annotations

from kvnode.base.codes import Code
from kvnode.base.errors import RequestError, UnavailableError

EXIT_ERROR = 1
EXIT_INPUT = 3
EXIT_FEATURE = 4
EXIT_INTERRUPTED = 5
EXIT_IO = 6
EXIT_ARGS = 128

_HINTS = {
    Code.EMPTY_KEY: 'give a key that is not empty; --prefix "" means all keys',
    Code.COMPACTED: "that revision is gone for good; read without --rev, or at a later one",
    Code.FUTURE_REV: "`kvnode get KEY -w json` shows the current revision in its header",
    Code.NO_SPACE: "delete keys or run `kvnode compaction REV`; or raise --quota-backend-bytes",
    Code.REQUEST_TOO_LARGE: "send less at once, or raise the node's --max-request-bytes",
    Code.TOO_MANY_OPS: "split the transaction, or raise the node's --max-txn-ops",
    Code.DUPLICATE_KEY: "one transaction may change a key only once",
    Code.KEY_NOT_FOUND: "--ignore-value and --ignore-lease need a key that exists",
    Code.LEASE_NOT_FOUND: "the lease has ended or was never granted; put without --lease",
    Code.OUTCOME_UNKNOWN: "read the key to see whether the write was executed",
    Code.APPLIED: "the write was executed once; read the key to see its result",
    Code.CORRUPT: "stop the node and run `kvnode verify DATA-DIR`",
    Code.NO_LEADER: "try again; `kvnode status` shows who leads",
}


class Fault(Exception):
    """A user's fault, found by the command line itself. `hint` says what to do next."""

    def __init__(self, text: str, status: int = EXIT_ERROR, hint: str = "") -> None:
        self.status = status
        self.hint = hint
        super().__init__(text)


def hint_for(error: Exception) -> str:
    """The next step after an error of the client; "" if there is none to give."""
    if isinstance(error, RequestError):
        return _HINTS.get(error.code, "")
    if isinstance(error, UnavailableError):
        return "is the node up? `kvnode serve` starts one; --endpoints names another"
    return ""
