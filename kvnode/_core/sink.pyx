"""Sinks: what a gateway's front and reads answer into, whichever door a request came through.

Role: the border between the doors (native connections, gRPC streams, Python itself) and what they
share (`front`: proposals, results; `readqueue`: reads). A Ref names the sink and, in the sink's
own terms, the request.
Callers: front and readqueue answer; procs/gateway puts the sinks together and flushes them.

Invariants:
  1. A Ref outlives its client: a sink checks (`alive`) before it touches anything of the client.
  2. A sink's number is given once and never changes.
  3. Between open_answer and close_answer of one request no other is opened on that sink.
"""

from libc.stdint cimport int64_t, uint8_t, uint64_t

from kvnode._core.buf cimport kv_buf, kv_buf_free, kv_buf_trim


cdef class Sink:
    """Abstract: an answer to nobody."""

    cdef bint alive(self, const Ref *ref) noexcept nogil:
        return False

    cdef bint full(self, const Ref *ref) noexcept nogil:
        return False

    cdef bint mark_held(self, const Ref *ref) noexcept nogil:
        return True

    cdef void unmark_held(self, const Ref *ref) noexcept nogil:
        pass

    cdef void count_long(self, const Ref *ref, int change) noexcept nogil:
        pass

    cdef int answer(self, const Ref *ref, int code, int state, const uint8_t *p,
                    size_t n) except -1:
        raise NotImplementedError

    cdef kv_buf *open_answer(self, const Ref *ref) except NULL:
        raise NotImplementedError

    cdef int close_answer(self, const Ref *ref, int code) except -1:
        raise NotImplementedError

    cdef int undo_answer(self, const Ref *ref) except -1:
        raise NotImplementedError

    cdef int64_t room(self, const Ref *ref) noexcept nogil:
        return 1

    cdef int begin_long(self, const Ref *ref, uint64_t n) except -1:
        raise NotImplementedError

    cdef int add_long(self, const Ref *ref, const uint8_t *p, size_t n) except -1:
        raise NotImplementedError

    cdef int end_long(self, const Ref *ref, int code) except -1:
        raise NotImplementedError

    cdef int refuse_size(self, const Ref *ref, uint64_t n, uint64_t most) except -1:
        raise NotImplementedError

    cdef bint flush(self) except? True:
        return False


cdef class Sinks:
    """The sinks of one gateway, by number."""

    def __cinit__(self):
        self.kept = []

    def add(self, Sink sink not None) -> None:
        """Gives `sink` its number. Refs of it may be made from now on."""
        assert self.count < SINKS_MAX
        sink.number = self.count
        self.table[self.count] = <PyObject *> sink
        self.kept.append(sink)
        self.count += 1

    def flush(self) -> bool:
        """Sends what has gathered anywhere; True: try again soon."""
        cdef bint left = False
        cdef uint32_t i
        for i in range(self.count):
            left = (<Sink> self.table[i]).flush() or left
        return left


cdef class OwnSink(Sink):
    """Requests of Python's own; a Ref's id is the caller's token."""

    def __cinit__(self):
        self.answers = []

    def __dealloc__(self):
        kv_buf_free(&self.body)

    cdef bint alive(self, const Ref *ref) noexcept nogil:
        return True

    cdef kv_buf *open_answer(self, const Ref *ref) except NULL:
        kv_buf_trim(&self.body, 1 << 20)
        return &self.body

    cdef int close_answer(self, const Ref *ref, int code) except -1:
        return self.answer(ref, code, 0, self.body.p, 0 if code else self.body.n)

    cdef int undo_answer(self, const Ref *ref) except -1:
        kv_buf_trim(&self.body, 1 << 20)
        return 0

    cdef int answer(self, const Ref *ref, int code, int state, const uint8_t *p,
                    size_t n) except -1:
        self.answers.append((ref.id, code, p[:n] if n else b""))
        return 0

    def take_answers(self) -> list:
        """[(token, code, body)] since the last call."""
        if not self.answers:
            return []
        out = self.answers
        self.answers = []
        return out
