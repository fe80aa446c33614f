"""Any bytes as a WatchRequest: protobuf's fields or MALFORMED, and the method survives them.

Run by tests/unit with seeded mutations, or under atheris: `python -m tests.fuzz.fuzz_watch CORPUS`.
"""

from __future__ import annotations

import sys

from google.protobuf.message import DecodeError

from kvnode._core import watchpb
from kvnode.base.codes import Code
from kvnode.proto import rpc_pb2
from tests.support.watching import Site

KINDS = {None: 0, "create_request": 1, "cancel_request": 2, "progress_request": 3}


def expected(data: bytes) -> tuple[int, dict[str, bytes | int | bool]] | None:
    """Kind and fields as protobuf reads them; None when it does not."""
    try:
        request = rpc_pb2.WatchRequest.FromString(data)
    except DecodeError:
        return None
    kind = KINDS[request.WhichOneof("request_union")]
    if kind == 1:
        c = request.create_request
        return kind, {
            "key": c.key, "range_end": c.range_end, "start_revision": c.start_revision,
            "progress_notify": c.progress_notify, "noput": 0 in c.filters,
            "nodelete": 1 in c.filters, "prev_kv": c.prev_kv, "watch_id": c.watch_id,
            "fragment": c.fragment,
        }
    return kind, {"watch_id": request.cancel_request.watch_id} if kind == 2 else {}


def fuzz(data: bytes) -> None:
    code, kind, fields = watchpb.decode(data)
    want = expected(data)
    assert code in (Code.OK, Code.MALFORMED)
    if code == Code.OK:
        assert want == (kind, fields), (data, want, kind, fields)
    site = Site(limit=1000)
    site.write((b"a", b"1"))
    handle = site.calls.open(site.watches)
    site.calls.message(handle, data)
    site.calls.message(handle, data)
    site.settle()
    ended = site.calls.status(handle)
    assert (ended is not None) == (code == Code.MALFORMED)
    for body in site.calls.take(handle):
        rpc_pb2.WatchResponse.FromString(body)


if __name__ == "__main__":
    import atheris

    atheris.Setup(sys.argv, fuzz)
    atheris.Fuzz()
