# distutils: language = c++
"""Calls that Python answers (PyCall) and calls that Python makes inside the process (LocalCall).

Role: the middle floor of the gRPC front. `route_python` lets a Python handler answer a method;
`open_local` calls any routed method without a connection: the JSON gateway and tests do. One
thread only.

Invariants:
  1. An exception of a handler ends its call with INTERNAL and is logged; the process goes on.
  2. on_end of a local call comes exactly once, from a flush, and nothing after it; after `cancel`
     it does not come.
"""

import binascii
import logging
from base64 import b64decode

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memcmp

from kvnode._core.buf cimport (
    kv_buf_free, kv_buf_grow, kv_buf_trim, kv_load_be32, kv_load_u32, kv_put_bytes, kv_put_u32,
    kv_store_be32,
)
from kvnode._core.calls cimport PREFIX_BYTES, Call, Methods
from kvnode._core.streams cimport NO_ROUTE, Stream, Streams

log = logging.getLogger("gateway")

cdef enum:
    GOT_KEEP_BYTES = 65536
    CODE_INTERNAL_ = 13
    CODE_UNIMPLEMENTED_ = 12


cdef class PyCall:
    """One call of a method that Python answers. Set `on_message`, `on_half_close`, `on_gone`,
    `on_room` in the handler."""

    def __cinit__(self):
        self.raw = b""

    @property
    def metadata(self) -> dict:
        """What the client sent beside HTTP's own: text, or bytes for names in -bin. A name that
        came several times has its values joined by a comma; of -bin the last one."""
        cdef const uint8_t *p = self.raw
        cdef const uint8_t *end = p + len(self.raw)
        cdef uint32_t n, m
        if self.pairs is not None:
            return self.pairs
        self.pairs = {}
        while p < end:
            n, m = kv_load_u32(p), kv_load_u32(p + 4)
            name = p[8:8 + n].decode("latin-1")
            value = p[8 + n:8 + n + m]
            p += 8 + n + m
            if name.endswith("-bin"):
                try:
                    self.pairs[name] = b64decode(value + b"=" * ((4 - len(value) % 4) % 4))
                except binascii.Error:
                    self.pairs[name] = value
            elif name in self.pairs:
                self.pairs[name] += "," + value.decode("latin-1")
            else:
                self.pairs[name] = value.decode("latin-1")
        return self.pairs

    @property
    def alive(self) -> bool:
        """Whether it still takes messages."""
        return self.streams.alive(self.call)

    def room(self) -> int:
        """Bytes that it takes before it counts as full; <= 0: wait for on_room."""
        return self.streams.room(self.call)

    def send(self, bytes message not None) -> None:
        """One message; nothing happens once the call has ended."""
        cdef const uint8_t *p = message
        kv_put_bytes(self.streams.begin_message(self.call), p, len(message))
        self.streams.end_message(self.call)

    def finish(self, int status=0, str text="") -> None:
        """Ends the call after what was sent. No callback follows."""
        cdef bytes raw = text.encode()
        cdef const uint8_t *p = raw
        if self.done:
            return
        self.done = True
        self.streams.python.calls.pop(self.call.number, None)
        self.streams.finish(self.call, status, p, len(raw))

    def _run(self, callback, *arguments):
        if callback is None or self.done:
            return
        try:
            callback(*arguments)
        except Exception:
            log.exception("a handler failed", extra={"fields": {"method": self.path}})
            self.finish(CODE_INTERNAL_, "kvnode: internal error, see the log of this member")


cdef class PyMethods(Methods):
    """The methods that Python answers."""

    cdef PyCall of(self, Call call):
        cdef PyCall c = self.calls.get(call.number)
        if c is None or c.call.generation != call.generation:
            return None
        return c

    cdef int on_open(self, Call call, int method) except -1:
        cdef PyCall c = PyCall.__new__(PyCall)
        cdef Stream *s = self.streams.find(call)
        c.streams = self.streams
        c.call = call
        if s != NULL and s.meta.n:
            c.raw = s.meta.p[:s.meta.n]
        path, handler = self.handlers[method]
        c.path = path
        self.calls[call.number] = c
        c._run(handler, c)
        return 0

    cdef int on_message(self, Call call, int method, const uint8_t *p, size_t n) except -1:
        cdef PyCall c = self.of(call)
        if c is not None:
            c._run(c.on_message, p[:n] if n else b"")
        return 0

    cdef int on_half_close(self, Call call, int method) except -1:
        cdef PyCall c = self.of(call)
        if c is not None:
            c._run(c.on_half_close)
        return 0

    cdef int on_gone(self, Call call, int method) except -1:
        cdef PyCall c = self.of(call)
        if c is not None:
            del self.calls[call.number]
            c._run(c.on_gone)
            c.done = True
        return 0

    cdef int on_room(self, Call call, int method) except -1:
        cdef PyCall c = self.of(call)
        if c is not None:
            c._run(c.on_room)
        return 0


cdef class LocalCall:
    """A call of one of this gateway's methods, made inside the process."""

    def __dealloc__(self):
        kv_buf_free(&self.got)

    def send(self, bytes message not None) -> None:
        """One message of the client's."""
        cdef Stream *s = self.streams.find(self.call)
        cdef const uint8_t *p = message
        cdef uint8_t prefix[PREFIX_BYTES]
        if s == NULL:
            return
        prefix[0] = 0
        kv_store_be32(prefix + 1, <uint32_t> len(message))
        self.streams.feed(s, prefix, PREFIX_BYTES)
        self.streams.feed(s, p, len(message))

    def half_close(self) -> None:
        """The client sends no more."""
        cdef Stream *s = self.streams.find(self.call)
        if s != NULL:
            self.streams.half_close(s)

    def cancel(self) -> None:
        """Forgets the call: neither on_message nor on_end follows."""
        cdef Stream *s
        if self.done:
            return
        self.done = True
        s = self.streams.streams[self.call.number]
        self.streams.gone(s)
        if not self.draining:
            self.end()

    def pause(self) -> None:
        """No message from now on: they gather, and the call's room shrinks."""
        self.paused = True

    def resume(self) -> None:
        """Messages again, from the next flush on."""
        cdef Stream *s
        if self.paused and not self.done:
            self.paused = False
            s = self.streams.streams[self.call.number]
            self.streams.touch(s)
            self.streams.work()

    def end(self):
        self.streams.local_calls.pop(self.call.number, None)
        self.streams.release(self.streams.streams[self.call.number])
        kv_buf_free(&self.got)

    cdef int drain(self, Stream *s) except -1:
        """Gives on the whole messages that are there, and the end behind them."""
        cdef uint8_t *d
        cdef uint64_t need
        cdef size_t n
        cdef int status
        self.draining = True
        while not self.done and not self.paused:
            n = s.queued
            if n:
                d = kv_buf_grow(&self.got, n)
                if d == NULL:
                    raise MemoryError
                self.streams.take_out(s, d, n)
            while not self.done and not self.paused and self.got.n - self.got_at >= PREFIX_BYTES:
                d = self.got.p + self.got_at
                need = kv_load_be32(d + 1)
                if self.got.n - self.got_at < need + PREFIX_BYTES:
                    break
                message = d[PREFIX_BYTES:PREFIX_BYTES + need] if need else b""
                self.got_at += need + PREFIX_BYTES
                self.run(self.on_message, message)
            if self.got_at == self.got.n:
                self.got_at = 0
                kv_buf_trim(&self.got, GOT_KEEP_BYTES)
            if s.queued == 0:
                break
        if not self.done and not self.paused and s.finished and s.queued == 0:
            self.done = True
            status = CODE_INTERNAL_ if s.broken else s.status
            text = s.text.p[:s.text.n].decode("utf-8", "replace") if s.text.n else ""
            self.run(self.on_end, status, text)
        self.draining = False
        if self.done:
            self.end()
        return 0

    def run(self, callback, *arguments):
        try:
            callback(*arguments)
        except Exception:
            log.exception("a caller failed")
            self.cancel()


cdef class PyStreams(Streams):
    """Streams, with Python's methods and calls."""

    def __cinit__(self, **_):
        self.python = PyMethods.__new__(PyMethods)
        self.python.streams = self
        self.python.handlers = []
        self.python.calls = {}
        self.local_calls = {}

    def route_python(self, str path not None, handler, bint client_streams=False,
                     bint server_streams=False) -> None:
        """`handler(PyCall)` is called when the headers of a call of `path` have come."""
        self.python.handlers.append((path, handler))
        self.route(path.encode(), self.python, len(self.python.handlers) - 1, client_streams,
                   server_streams, metadata=True)

    def open_local(self, str path not None, on_message, on_end, dict metadata=None) -> LocalCall:
        """A call of any routed method; `on_message(bytes)` per message, `on_end(status, text)`
        once. Both come from a flush."""
        cdef Stream *s = self.new_stream()
        cdef LocalCall c = LocalCall.__new__(LocalCall)
        cdef bytes raw = path.encode()
        cdef const uint8_t *p = raw
        c.streams = self
        c.call = Call(s.number, s.generation)
        c.on_message = on_message
        c.on_end = on_end
        s.local = True
        self.local_calls[s.number] = c
        number = self.numbers.get(raw)
        if number is None:
            self.unknown(s, p, len(raw))
            return c
        s.route = number
        for name, value in (metadata or {}).items():
            self.put_pair(s, name, value)
        self.open_call(s)
        return c

    cdef int put_pair(self, Stream *s, str name, value) except -1:
        cdef bytes key = name.lower().encode()
        cdef bytes raw
        cdef const uint8_t *p = key
        cdef const uint8_t *q
        if isinstance(value, bytes):
            raw = binascii.b2a_base64(value, newline=False)
        else:
            raw = str(value).encode("latin-1", "replace")
        q = raw
        self.put_meta(s, p, len(key), q, len(raw))
        return 0

    cdef void put_meta(self, Stream *s, const uint8_t *name, size_t n, const uint8_t *value,
                       size_t m) noexcept:
        if n == 9 and memcmp(name, b"hasleader", 9) == 0:
            # etcd's clients send "true"; any other value asks nothing.
            s.has_leader = m == 4 and memcmp(value, b"true", 4) == 0
        if s.route != NO_ROUTE and not self.routes[s.route].wants_meta:
            return
        kv_put_u32(&s.meta, <uint32_t> n)
        kv_put_u32(&s.meta, <uint32_t> m)
        kv_put_bytes(&s.meta, name, n)
        kv_put_bytes(&s.meta, value, m)

    cdef int unknown(self, Stream *s, const uint8_t *path, size_t n) except -1:
        """A path that nobody answers."""
        cdef bytes whole = path[:n]
        cdef bytes service, method
        at = whole.rfind(b"/")
        if at < 1 or whole[:1] != b"/":
            return self.refuse(s, CODE_UNIMPLEMENTED_, b'malformed method name: "%s"' % whole)
        service, method = whole[1:at], whole[at + 1:]
        if whole[:at + 1] in self.services:
            return self.refuse(s, CODE_UNIMPLEMENTED_,
                               b"unknown method %s for service %s" % (method, service))
        return self.refuse(s, CODE_UNIMPLEMENTED_, b"unknown service %s" % service)

    cdef int drain_local(self, Stream *s) except -1:
        cdef LocalCall c = self.local_calls.get(s.number)
        if c is not None and c.call.generation == s.generation:
            c.drain(s)
        return 0
