# distutils: language = c++
"""Physical compactions: answered after the freeing, not with the logical compaction.

Role: a sink in front of a request's own. A refusal goes through at once; an answer is kept until
this member's map says that freeing has passed the revision (TREE_META "compact", which the
applier advances between batches; it tells the gateways when a pass has ended).
Callers: front wraps, procs/gateway calls `turn` with its snapshots.

Invariant: each wrapped request is answered once, or dropped with its client.
"""

from libc.stdint cimport int64_t, uint8_t, uint32_t
from libc.string cimport memset
from libcpp.vector cimport vector

from kvnode._core.buf cimport kv_buf_free, kv_put_bytes
from kvnode._core.codes cimport CODE_OK
from kvnode._core.envelope cimport STATE_EXECUTED
from kvnode._core.ranges cimport RangeReader
from kvnode._core.sink cimport Ref, Sinks


cdef class FreedSink(Sink):
    """Answers for `sinks`, later."""

    def __cinit__(self, Sinks sinks not None):
        self.sinks = sinks

    def __dealloc__(self):
        for pair in self.waiting:
            kv_buf_free(&self.waiting[pair.first].body)

    def __len__(self):
        return self.done

    cdef Ref wrap(self, const Ref *ref, int64_t revision):
        cdef Waiting w
        cdef Ref out
        memset(&w, 0, sizeof(Waiting))
        w.ref = ref[0]
        w.revision = revision
        self.next_id += 1
        while self.waiting.count(self.next_id):
            self.next_id += 1
        self.waiting[self.next_id] = w
        out = ref[0]
        out.sink = self.number
        out.id = self.next_id
        return out

    cdef int answer(self, const Ref *ref, int code, int state, const uint8_t *p,
                    size_t n) except -1:
        cdef Waiting *w
        if not self.waiting.count(ref.id):
            return 0
        w = &self.waiting[ref.id]
        if code != CODE_OK:
            self.sinks.of(&w.ref).answer(&w.ref, code, state, p, n)
            self.waiting.erase(ref.id)
            return 0
        kv_put_bytes(&w.body, p, n)
        if w.body.err:
            raise MemoryError
        w.done = True
        self.done += 1
        return 0

    def turn(self, RangeReader reader not None) -> None:
        """Answers what the reader's snapshot shows to be freed; `len()`: those that wait."""
        cdef vector[uint32_t] ended
        cdef Waiting *w
        cdef size_t i
        for pair in self.waiting:
            if pair.second.done and <int64_t> reader.heads.freed >= pair.second.revision:
                ended.push_back(pair.first)
        for i in range(ended.size()):
            w = &self.waiting[ended[i]]
            self.sinks.of(&w.ref).answer(&w.ref, CODE_OK, STATE_EXECUTED, w.body.p, w.body.n)
            kv_buf_free(&w.body)
            self.waiting.erase(ended[i])
            self.done -= 1
