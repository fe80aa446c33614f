"""The log's writer thread. Table of contents of logwriter.pyx."""

from libc.stdint cimport int64_t, uint8_t, uint64_t

cdef struct state_t
cdef struct op_t

cdef class LogWriter:
    cdef state_t *s
    cdef uint64_t next_ticket
    cdef object held        # (ticket, memoryview, submit time): buffers the thread still reads
    cdef bint closed
    cdef int event_fd
    cdef void _stop(self) noexcept
    cdef uint64_t _push(self, op_t *op) except 0
    cdef bint _idle(self) noexcept
    cdef void _write_here(self, op_t *op) noexcept
    cdef bint lone_write(self, int fd, int64_t offset, const uint8_t *p, size_t n,
                         bint kick) noexcept
    cdef uint64_t lone_sync(self, int fd) noexcept
    cdef void lone_mark(self, int fd, int64_t offset, const uint8_t *p, size_t n) noexcept
    cdef uint64_t _done(self) noexcept
