"""Methods that send back what came: for tests of Calls, and for benches of them alone.

| method | what it does |
|---|---|
| ECHO | one message, sent back |
| CHAT | each message is sent back; ends when the client has half-closed |
| LONG | the message is a decimal count: one message of so many bytes, in pieces as room allows |
| FLOOD | the message is a decimal count: so many messages of 1 KiB, as room allows |
| SHARED | each message goes to every call of this method, encoded once |
"""

from libc.stdint cimport int64_t, uint8_t
from libc.string cimport memcpy, memset

from kvnode._core.buf cimport kv_put_bytes
from kvnode._core.calls cimport (
    PREFIX_BYTES, Call, Calls, Methods, Shared, shared_drop, shared_new,
)

ECHO, CHAT, LONG, FLOOD, SHARED = range(5)

cdef enum:
    PIECE_BYTES = 65536
    NOTE_BYTES = 1024


cdef class EchoMethods(Methods):
    """`log` notes (upcall, method, call number) when it is a list."""

    cdef Calls calls
    cdef dict left             # call number -> bytes or messages that are still to be sent
    cdef dict members          # of SHARED: number -> generation
    cdef uint8_t piece[PIECE_BYTES]
    cdef public object log

    def __cinit__(self, Calls calls not None, log=None):
        self.calls = calls
        self.left = {}
        self.members = {}
        self.log = log
        memset(self.piece, 0x78, PIECE_BYTES)

    cdef int note(self, str what, Call call, int method) except -1:
        if self.log is not None:
            self.log.append((what, method, call.number))
        return 0

    cdef int on_open(self, Call call, int method) except -1:
        self.note("open", call, method)
        if method == 4:
            self.members[call.number] = call.generation
        return 0

    cdef int on_message(self, Call call, int method, const uint8_t *p, size_t n) except -1:
        cdef Shared *m
        self.note("message", call, method)
        if method == 0 or method == 1:
            kv_put_bytes(self.calls.begin_message(call), p, n)
            self.calls.end_message(call)
            if method == 0:
                self.calls.finish(call, 0, NULL, 0)
        elif method == 4:
            m = shared_new(n)
            if m == NULL:
                raise MemoryError
            memcpy(m.data + PREFIX_BYTES, p, n)
            for number, generation in self.members.items():
                self.calls.send(Call(number, generation), m)
            shared_drop(m)
        else:
            self.left[call.number] = int(p[:n])
            if method == 2:
                self.calls.begin_long(call, int(p[:n]))
            self.advance(call, method)
        return 0

    cdef int advance(self, Call call, int method) except -1:
        cdef int64_t left = self.left[call.number], n
        while left and self.calls.room(call) > 0:
            if method == 2:
                n = min(left, <int64_t> PIECE_BYTES)
                self.calls.add_long(call, self.piece, n)
                left -= n
            else:
                kv_put_bytes(self.calls.begin_message(call), self.piece, NOTE_BYTES)
                self.calls.end_message(call)
                left -= 1
        self.left[call.number] = left
        if left == 0:
            del self.left[call.number]
            self.calls.finish(call, 0, NULL, 0)
        return 0

    cdef int on_half_close(self, Call call, int method) except -1:
        self.note("half_close", call, method)
        self.members.pop(call.number, None)
        return self.calls.finish(call, 0, NULL, 0)

    cdef int on_gone(self, Call call, int method) except -1:
        self.note("gone", call, method)
        self.left.pop(call.number, None)
        self.members.pop(call.number, None)
        return 0

    cdef int on_room(self, Call call, int method) except -1:
        self.note("room", call, method)
        return self.advance(call, method)
