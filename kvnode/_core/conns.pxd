# distutils: language = c++
"""Connections of a gateway's native listener: who is there, what they are owed. See conns.pyx."""

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libcpp.unordered_map cimport unordered_map
from libcpp.vector cimport vector

from kvnode._core.buf cimport kv_buf
from kvnode._core.sink cimport Ref, Sink

cdef enum:
    HEADER_BYTES = 32
    ITEM_BYTES = 24
    ANSWER_BYTES = 16

    OP_HELLO = 1
    OP_HELLO_OK = 2
    OP_REQUESTS = 3
    OP_ANSWERS = 4
    OP_PING = 5
    OP_PONG = 6
    OP_GOODBYE = 7
    OP_ERROR = 8

    NO_CONN = 0xffffffff
    ZMQ_DONTWAIT_ = 1
    ZMQ_SRCFD_ = 2

cdef struct zmq_msg:
    uint64_t opaque[8]

ctypedef int (*fn_msg)(zmq_msg *) noexcept nogil
ctypedef int (*fn_msg_size)(zmq_msg *, size_t) noexcept nogil
ctypedef int (*fn_msg_data)(zmq_msg *, void *, size_t, void (*)(void *, void *) noexcept nogil,
                            void *) noexcept nogil
ctypedef void *(*fn_data)(zmq_msg *) noexcept nogil
ctypedef size_t (*fn_size)(zmq_msg *) noexcept nogil
ctypedef int (*fn_io)(zmq_msg *, void *, int) noexcept nogil
ctypedef int (*fn_get)(zmq_msg *, int) noexcept nogil
ctypedef int (*fn_errno)() noexcept nogil

cdef struct Zmq:
    fn_msg init
    fn_msg_size init_size
    fn_msg_data init_data
    fn_msg close
    fn_msg more
    fn_data data
    fn_size size
    fn_io recv
    fn_io send
    fn_get get
    fn_errno err

cdef struct Conn:
    bint used
    bint greeted
    bint blocked           # the socket did not take its answers: tried again each turn
    bint held              # some of its reads wait in `held`
    int fd                 # of its TCP connection, -1 when not known
    uint32_t longs
    int64_t queued         # bytes of large answers that libzmq holds
    uint64_t blocked_us
    bint dirty
    uint32_t rid
    uint32_t generation
    uint32_t user
    uint64_t session
    uint64_t lowest
    uint64_t inflight
    uint64_t credit
    uint64_t seen_us
    uint32_t answers
    kv_buf out

# A TCP connection as the kernel and libzmq see it. libzmq keeps the frames of an unfinished
# multipart message without a bound; what it received and did not deliver is that memory.
cdef struct Flow:
    int64_t received       # by the kernel, when the watch began
    int64_t delivered      # by libzmq, since then


cdef class Conns(Sink):
    cdef:
        Zmq z
        void *sock
        vector[Conn *] conns
        vector[uint32_t] free_conns
        unordered_map[uint32_t, uint32_t] by_rid
        vector[uint32_t] dirty
        unordered_map[int, Flow] flows
        uint64_t now_us
        readonly uint64_t malformed
        readonly uint64_t sends     # how often something was put into the socket
        list events
        size_t open_at         # where the answer being written begins

    cdef uint32_t conn_of(self, const uint8_t *p, size_t n) except? 0xfffffffe
    cdef uint8_t *open_answers(self, Conn *c, uint32_t number) except NULL
    cdef bint send_ident(self, Conn *c) noexcept nogil
    cdef bint send_buf(self, Conn *c) noexcept nogil
    cdef void send_plain(self, uint32_t number, int op, const uint8_t *p, size_t n) noexcept nogil
    cdef int fail(self, uint32_t number, int code, bytes text) except -1
    cdef void drop_conn(self, Conn *c) noexcept nogil
    cdef void drop(self, uint32_t number) noexcept nogil
    cdef void end_blocked(self, uint32_t number) noexcept nogil
    cdef void count_flow(self, zmq_msg *m) noexcept nogil
