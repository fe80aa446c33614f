"""Unix stream sockets as links. Table of contents of unixlink.pyx, for the fast lanes."""

from libc.stdint cimport uint8_t

cdef enum:
    HEAD_BYTES = 8
    LINK_VERSION = 1

cdef class Stream:
    cdef object sock
    cdef readonly object peer
    cdef int fd
    cdef uint8_t *room
    cdef size_t filled
    cdef bint peeked           # a lane read frames into `room` that it left there
    cdef size_t behind         # bytes in `room` behind the frame that `peek` gave
    cdef object big            # bytes under construction, of a frame above RECV_BYTES
    cdef size_t big_at
    cdef int big_kind
    cdef list out              # what the socket did not take: bytes-likes, the first from out_at
    cdef size_t out_at
    cdef bint writing
    cdef int read(self, list got) except -1
    cdef int split(self, list got) except -1
    cdef const uint8_t *peek(self, int kind, int other, size_t most, size_t *size) noexcept
    cdef const uint8_t *peek_behind(self, size_t before, int kind, size_t size) noexcept
    cdef void give_back(self, size_t size) noexcept
    cdef int no_bytes(self, ssize_t n) noexcept
    cdef int put(self, int kind, tuple parts) except -1
    cdef int put_frame(self, uint8_t *frame, int kind, size_t size) except -1
    cdef int keep(self, object data) except -1
    cdef int flush(self) except -1

cdef class UnixEndpoint:
    cdef object poll
    cdef int poll_fd
    cdef dict streams
    cdef object listener
    cdef int listener_fd
    cdef list gone
    cdef Stream peeked         # the stream with frames that a lane left
    cdef str path
    cdef object add(self, sock)
    cdef const uint8_t *peek(self, Stream stream, int kind, int other, size_t most,
                             size_t *size) noexcept
    cdef const uint8_t *peek_behind(self, Stream stream, size_t before, int kind,
                                    size_t size) noexcept
    cdef void give_back(self, Stream stream, size_t size) noexcept
    cdef int send_frame(self, Stream stream, uint8_t *frame, int kind, size_t size) except -1
    cdef int sent(self, Stream stream, int broken) except -1
    cdef int accept(self) except -1
    cdef int watch(self, Stream stream) except -1
    cdef int drop(self, Stream stream) except -1
