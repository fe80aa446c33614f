# distutils: language = c++
"""The native door: ZeroMQ messages of clients in, requests to the front.

Role: reads what has come on the ROUTER socket, checks messages and items, and hands each
key-value request to `front` with a Ref of the connection (`conns`, which also packs and sends the
answers). What is rare (HELLO, administration) becomes an event for Python.
Caller: procs/nativedoor.

Layouts of the messages: docs/protocol.md.
"""

from libc.stdint cimport uint8_t, uint32_t, uint64_t

from kvnode._core.buf cimport kv_load_u16, kv_load_u32, kv_load_u64
from kvnode._core.codes cimport *
from kvnode._core.conns cimport (
    HEADER_BYTES, ITEM_BYTES, NO_CONN, OP_GOODBYE, OP_HELLO, OP_PING, OP_PONG, OP_REQUESTS,
    ZMQ_DONTWAIT_, ZMQ_SRCFD_, Conn, Conns, zmq_msg,
)
from kvnode._core.envelope cimport STATE_EXECUTED
from kvnode._core.front cimport Front, Origin
from kvnode._core.sink cimport Ref


cdef class NativeFront:
    """Messages of `conns`' socket to requests of `front`."""

    cdef:
        Conns conns
        Front front
        uint64_t max_request
        readonly uint64_t messages

    def __cinit__(self, Conns conns not None, Front front not None, *, max_request_bytes):
        self.conns = conns
        self.front = front
        self.max_request = max_request_bytes

    def drain(self, uint64_t now_us, int most=4096) -> int:
        """Takes up to `most` messages from the socket; returns how many there were.

        Afterwards the front and its reads hold the requests, `conns.take_events()` what Python
        must decide.
        """
        cdef Conns t = self.conns
        cdef zmq_msg ident, body
        cdef int taken = 0, bad
        cdef uint32_t conn
        t.now_us = now_us
        while taken < most:
            t.z.init(&ident)
            if t.z.recv(&ident, t.sock, ZMQ_DONTWAIT_) < 0:
                t.z.close(&ident)
                break
            taken += 1
            t.z.init(&body)
            bad = 0
            if not t.z.more(&ident) or t.z.recv(&body, t.sock, ZMQ_DONTWAIT_) < 0:
                bad = 1
            while t.z.more(&body):
                # More than one frame: not this protocol. Read it out, end the connection.
                bad = 1
                t.count_flow(&body)
                t.z.close(&body)
                t.z.init(&body)
                if t.z.recv(&body, t.sock, ZMQ_DONTWAIT_) < 0:
                    break
            t.count_flow(&body)
            conn = t.conn_of(<const uint8_t *> t.z.data(&ident), t.z.size(&ident))
            if conn != NO_CONN:
                t.conns[conn].seen_us = now_us
                if t.conns[conn].fd < 0:
                    t.conns[conn].fd = t.z.get(&body, ZMQ_SRCFD_)
                if bad:
                    t.fail(conn, CODE_MALFORMED, b"one message is one frame")
                else:
                    self.on_message(conn, <const uint8_t *> t.z.data(&body), t.z.size(&body))
            else:
                t.malformed += 1
            t.z.close(&body)
            t.z.close(&ident)
        self.messages += taken
        return taken

    cdef int on_message(self, uint32_t number, const uint8_t *p, size_t n) except -1:
        cdef Conns t = self.conns
        cdef Conn *c = t.conns[number]
        cdef int op
        cdef uint32_t count
        if n < HEADER_BYTES or p[0] != 75 or p[1] != 86 or p[2] != 78 or p[3] != 49:
            return t.fail(number, CODE_MALFORMED, b"not a KVN1 message")
        op = p[4]
        if p[5] != 0 or kv_load_u16(p + 6) != 0 or kv_load_u32(p + 12) != 0:
            return t.fail(number, CODE_UNKNOWN_FLAGS, b"message header")
        count = kv_load_u32(p + 8)
        if op == OP_HELLO:
            t.events.append(("hello", number, c.generation, p[HEADER_BYTES:n]))
            return 0
        if not c.greeted:
            return t.fail(number, CODE_MALFORMED, b"HELLO comes first")
        if op == OP_REQUESTS:
            return self.on_requests(number, count, kv_load_u64(p + 16), kv_load_u64(p + 24),
                                    p + HEADER_BYTES, n - HEADER_BYTES)
        if op == OP_PING:
            t.send_plain(number, OP_PONG, p + HEADER_BYTES, n - HEADER_BYTES)
            return 0
        if op == OP_GOODBYE:
            t.events.append(("goodbye", number, c.generation, p[HEADER_BYTES:n]))
            t.drop(number)
            return 0
        return t.fail(number, CODE_MALFORMED, b"unknown opcode")

    cdef int on_requests(self, uint32_t number, uint32_t count, uint64_t session, uint64_t lowest,
                         const uint8_t *p, size_t n) except -1:
        cdef Conns t = self.conns
        cdef Conn *c = t.conns[number]
        cdef size_t at = 0
        cdef uint32_t size, left = count
        cdef int kind, code
        cdef Ref ref
        cdef Origin origin
        if session != 0 and session != c.session:
            return t.fail(number, CODE_OUTCOME_UNKNOWN, b"the session is another connection's")
        ref.sink = t.number
        ref.conn = number
        ref.generation = c.generation
        origin.session = session
        origin.lowest = lowest
        origin.user = c.user
        while left:
            if n - at < ITEM_BYTES:
                return t.fail(number, CODE_MALFORMED, b"item header is cut short")
            ref.id = kv_load_u32(p + at)
            size = kv_load_u32(p + at + 4)
            kind = p[at + 8]
            origin.sequence = kv_load_u64(p + at + 16)
            if p[at + 9] != 0 or kv_load_u16(p + at + 10) != 0 or kv_load_u32(p + at + 12) != 0:
                return t.fail(number, CODE_UNKNOWN_FLAGS, b"item header")
            at += ITEM_BYTES
            if n - at < size:
                return t.fail(number, CODE_MALFORMED, b"item body is cut short")
            ref.size = size + ITEM_BYTES
            c.inflight += ref.size
            if c.inflight > c.credit:
                return t.fail(number, CODE_TOO_MANY_REQUESTS, b"credit exceeded")
            code = self.front.take(&ref, kind, &origin, p + at, size)
            if code == CODE_UNKNOWN_KIND:
                if size > self.max_request:
                    code = CODE_REQUEST_TOO_LARGE
                else:
                    # Administration.
                    t.events.append(("request", ref.conn, ref.generation, ref.id, ref.size, kind,
                                     (p + at)[:size]))
                    code = CODE_OK
            if code:
                t.answer(&ref, code, STATE_EXECUTED, NULL, 0)
            at += size
            left -= 1
        if at != n:
            return t.fail(number, CODE_MALFORMED, b"bytes after the last item")
        return 0
