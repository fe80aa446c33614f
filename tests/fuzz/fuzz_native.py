"""Fuzz target: any bytes are a message of the native protocol, or DecodeError; nothing else."""

from __future__ import annotations

import contextlib

from kvnode.base.errors import DecodeError
from kvnode.wire import native
from kvnode.wire.native import Opcode


def fuzz(data: bytes) -> None:
    """Decodes as what the header says; then as everything else."""
    with contextlib.suppress(DecodeError):
        header = native.decode_header(data)
        if header.opcode == Opcode.REQUESTS:
            requests = list(native.decode_requests(data, header.items))
            assert native.encode_requests(header.session, header.lowest_open, requests) == data
        elif header.opcode == Opcode.ANSWERS:
            native.decode_answers(data, header.items)
    for decode in (
        native.decode_hello,
        native.decode_hello_ok,
        native.decode_error,
        native.decode_credit,
    ):
        with contextlib.suppress(DecodeError):
            decode(data)
