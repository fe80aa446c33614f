"""The log's writer thread: writes and syncs what is submitted, in order, without the GIL.

Caller: env/disk.py hands one to wal/log.py; the simulator's disk hands in another of the same
shape (wal/disk.py, `Writer`). Inputs: buffers with their file and offset, and renames. Output: a
rising ticket number that is finished, announced through an eventfd for a poll loop.

Invariants
 1. Tickets finish in the order of submission. A ticket is finished after its bytes were synced.
 2. Group commit: all that gathered for one file while the former sync ran is written and then
    synced once. Before the first byte goes to another file, and before a rename, the former file
    is synced.
 3. The first failed system call ends the thread's work: the error latches, nothing later is
    written, no sync is tried again, no further ticket finishes.
 4. `tail` bytes (the durable mark) are written behind a group's last buffer after its sync and
    before its ticket is announced, and only if nothing newer waits that would be written over
    them. They are not synced.
 5. Idle, the thread sleeps in a condition variable; there is no timeout and no spinning.

A C thread rather than a Python one: a lone record costs the same (bench/core_log.py; on a disk
that answers at once 6-33 against 6-34 us p50 from submit to the poll loop's wake-up), but a
Python thread must take the GIL between two groups, up to 5 ms when the loop decodes a large one.
Deliberately absent: the decision what to write (wal/log.py).
"""

from libc.errno cimport EINTR, errno
from libc.stdint cimport int64_t, uint8_t, uint64_t
from libc.stdlib cimport calloc, free, realloc
from libc.string cimport memset, strdup

import os
from collections import deque

from kvnode._core.meters cimport (
    H_WAL_FSYNC,
    H_WAL_WRITE,
    M_WAL_BYTES,
    meter_add,
    meter_now_ns,
    meter_observe,
)

from kvnode.base.errors import DiskError


cdef extern from "<fcntl.h>" nogil:
    int c_sync_file_range "sync_file_range"(int fd, int64_t offset, int64_t n, unsigned int flags)
    unsigned int SYNC_FILE_RANGE_WRITE

cdef extern from "<sys/uio.h>" nogil:
    struct iovec:
        void *iov_base
        size_t iov_len
    ssize_t c_pwritev "pwritev"(int fd, const iovec *iov, int n, int64_t offset)

cdef extern from "<unistd.h>" nogil:
    int c_fdatasync "fdatasync"(int fd)
    int c_fsync "fsync"(int fd)
    ssize_t c_write "write"(int fd, const void *p, size_t n)

cdef extern from "<stdio.h>" nogil:
    int c_rename "rename"(const char *src, const char *dst)

cdef extern from "<time.h>" nogil:
    struct timespec:
        long tv_sec
        long tv_nsec
    int CLOCK_MONOTONIC
    int clock_gettime(int clock, timespec *t)

cdef extern from "<signal.h>" nogil:
    ctypedef struct sigset_t:
        pass
    int SIG_SETMASK
    int sigfillset(sigset_t *s)
    int pthread_sigmask(int how, const sigset_t *s, sigset_t *old)

cdef extern from "<pthread.h>" nogil:
    ctypedef struct pthread_t:
        pass
    ctypedef struct pthread_mutex_t:
        pass
    ctypedef struct pthread_cond_t:
        pass
    int pthread_create(pthread_t *t, void *attr, void *(*run)(void *) noexcept nogil, void *arg)
    int pthread_join(pthread_t t, void **result)
    int pthread_mutex_init(pthread_mutex_t *m, void *attr)
    int pthread_mutex_destroy(pthread_mutex_t *m)
    int pthread_mutex_lock(pthread_mutex_t *m)
    int pthread_mutex_unlock(pthread_mutex_t *m)
    int pthread_cond_init(pthread_cond_t *c, void *attr)
    int pthread_cond_destroy(pthread_cond_t *c)
    int pthread_cond_signal(pthread_cond_t *c)
    int pthread_cond_wait(pthread_cond_t *c, pthread_mutex_t *m)

cdef enum:
    IOV = 256           # buffers joined in one pwritev
    BUCKETS = 32        # of log2 microseconds

cdef struct op_t:
    int fd              # file to write, or the folder to sync after a rename
    int64_t offset
    const uint8_t *p    # NULL: a rename
    size_t n
    size_t tail
    uint64_t ticket
    char *src
    char *dst

# One group's view of the thread; everything under `lock` except what `run` owns.
cdef struct state_t:
    pthread_t thread
    pthread_mutex_t lock
    pthread_cond_t wake
    int event_fd
    int stop
    op_t *inbox
    size_t inbox_n
    size_t inbox_cap
    uint64_t done           # highest finished ticket
    int failed              # errno, 0 while sound
    const char *failed_in
    uint64_t progress_us    # monotonic time of the last finished system call or wake-up
    uint64_t syncs
    uint64_t bytes
    uint64_t sync_us_sum
    uint64_t sync_us_max
    uint64_t buckets[BUCKETS]


cdef uint64_t now_us() noexcept nogil:
    cdef timespec t
    clock_gettime(CLOCK_MONOTONIC, &t)
    return <uint64_t>t.tv_sec * 1000000 + <uint64_t>t.tv_nsec // 1000


cdef void fail(state_t *s, int code, const char *where) noexcept nogil:
    pthread_mutex_lock(&s.lock)
    s.failed = code if code else 5
    s.failed_in = where
    pthread_mutex_unlock(&s.lock)


cdef void announce(state_t *s, uint64_t ticket) noexcept nogil:
    cdef uint64_t one = 1
    pthread_mutex_lock(&s.lock)
    if ticket > s.done:
        s.done = ticket
    s.progress_us = now_us()
    pthread_mutex_unlock(&s.lock)
    c_write(s.event_fd, &one, 8)


cdef int write_run(state_t *s, op_t *ops, size_t n) noexcept nogil:
    """Writes buffers of one file, joining those that touch; 0 or -1 (latched)."""
    cdef iovec iov[IOV]
    cdef size_t i = 0, k, j
    cdef int64_t offset
    cdef ssize_t got
    cdef uint64_t t0 = meter_now_ns(), bytes_before = s.bytes
    while i < n:
        k = 0
        offset = ops[i].offset
        while i + k < n and k < IOV:
            if k and ops[i + k].offset != ops[i + k - 1].offset + <int64_t>ops[i + k - 1].n:
                break
            iov[k].iov_base = <void *>ops[i + k].p
            iov[k].iov_len = ops[i + k].n
            k += 1
        j = 0
        while j < k:
            got = c_pwritev(ops[i].fd, &iov[j], <int>(k - j), offset)
            if got < 0:
                if errno == EINTR:
                    continue
                fail(s, errno, "pwritev")
                return -1
            offset += got
            s.bytes += <uint64_t>got
            # A short write is taken up where it ended; a full disk then answers ENOSPC.
            while j < k and <size_t>got >= iov[j].iov_len:
                got -= <ssize_t>iov[j].iov_len
                j += 1
            if j < k and got > 0:
                iov[j].iov_base = <void *>(<uint8_t *>iov[j].iov_base + got)
                iov[j].iov_len -= <size_t>got
        i += k
    meter_observe(H_WAL_WRITE, meter_now_ns() - t0, 1)
    meter_add(M_WAL_BYTES, s.bytes - bytes_before)
    return 0


cdef int sync_run(state_t *s, int fd) noexcept nogil:
    cdef uint64_t t0 = now_us(), us
    cdef int bucket = 0
    if c_fdatasync(fd) != 0:
        fail(s, errno, "fdatasync")
        return -1
    us = now_us() - t0
    meter_observe(H_WAL_FSYNC, us * 1000, 1)
    pthread_mutex_lock(&s.lock)
    s.syncs += 1
    s.sync_us_sum += us
    if us > s.sync_us_max:
        s.sync_us_max = us
    while us > 1 and bucket < BUCKETS - 1:
        us >>= 1
        bucket += 1
    s.buckets[bucket] += 1
    s.progress_us = now_us()
    pthread_mutex_unlock(&s.lock)
    return 0


cdef int mark(state_t *s, op_t *last) noexcept nogil:
    """Writes the durable mark unless newer bytes wait (invariant 4)."""
    cdef iovec iov
    cdef int newer
    cdef ssize_t got
    pthread_mutex_lock(&s.lock)
    newer = s.inbox_n != 0
    pthread_mutex_unlock(&s.lock)
    if newer or last.tail == 0:
        return 0
    iov.iov_base = <void *>(last.p + last.n)
    iov.iov_len = last.tail
    while True:
        got = c_pwritev(last.fd, &iov, 1, last.offset + <int64_t>last.n)
        if got >= 0:
            # A short mark is no mark: recovery does without it.
            return 0
        if errno != EINTR:
            fail(s, errno, "pwritev of the durable mark")
            return -1


cdef int run_group(state_t *s, op_t *ops, size_t n) noexcept nogil:
    """Works off what was taken from the inbox; 0 or -1 (latched)."""
    cdef size_t i = 0, k
    while i < n:
        if ops[i].p == NULL:
            if c_rename(ops[i].src, ops[i].dst) != 0:
                fail(s, errno, "rename")
                return -1
            if c_fsync(ops[i].fd) != 0:
                fail(s, errno, "fsync of the folder")
                return -1
            announce(s, ops[i].ticket)
            i += 1
            continue
        k = 1
        while i + k < n and ops[i + k].p != NULL and ops[i + k].fd == ops[i].fd:
            k += 1
        if write_run(s, ops + i, k) != 0 or sync_run(s, ops[i].fd) != 0:
            return -1
        if i + k == n and mark(s, ops + (n - 1)) != 0:
            return -1
        announce(s, ops[i + k - 1].ticket)
        i += k
    return 0


cdef void free_ops(op_t *ops, size_t n) noexcept nogil:
    cdef size_t i
    for i in range(n):
        free(ops[i].src)
        free(ops[i].dst)


cdef void *run(void *arg) noexcept nogil:
    cdef state_t *s = <state_t *>arg
    cdef op_t *mine = NULL
    cdef op_t *other
    cdef size_t n, cap = 0, other_cap
    cdef uint64_t one = 1
    cdef int bad = 0
    while not bad:
        pthread_mutex_lock(&s.lock)
        while s.inbox_n == 0 and not s.stop:
            pthread_cond_wait(&s.wake, &s.lock)
        if s.inbox_n == 0:
            pthread_mutex_unlock(&s.lock)
            break
        n = s.inbox_n
        other = s.inbox
        other_cap = s.inbox_cap
        s.inbox = mine
        s.inbox_cap = cap
        s.inbox_n = 0
        mine = other
        cap = other_cap
        s.progress_us = now_us()
        pthread_mutex_unlock(&s.lock)
        bad = run_group(s, mine, n)
        free_ops(mine, n)
    free(mine)
    if bad:
        c_write(s.event_fd, &one, 8)
    return NULL


cdef class LogWriter:
    """One writer thread. Not shared between Python threads: one caller submits and polls."""

    def __cinit__(self):
        self.s = NULL
        self.closed = True
        self.event_fd = -1

    def __init__(self):
        self.held = deque()
        self.next_ticket = 0
        self.event_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.s = <state_t *>calloc(1, sizeof(state_t))
        if self.s == NULL:
            raise MemoryError
        self.s.event_fd = self.event_fd
        pthread_mutex_init(&self.s.lock, NULL)
        pthread_cond_init(&self.s.wake, NULL)
        self.s.progress_us = now_us()
        # Signals are for the thread that runs Python's handlers and its poll loop.
        cdef sigset_t all_signals, before
        sigfillset(&all_signals)
        pthread_sigmask(SIG_SETMASK, &all_signals, &before)
        cdef int bad = pthread_create(&self.s.thread, NULL, run, self.s)
        pthread_sigmask(SIG_SETMASK, &before, NULL)
        if bad:
            raise DiskError("can't start the log's writer thread: the limit of threads is reached")
        self.closed = False

    def __dealloc__(self):
        self._stop()
        if self.s != NULL:
            free_ops(self.s.inbox, self.s.inbox_n)
            free(self.s.inbox)
            free(self.s)

    cdef void _stop(self) noexcept:
        if self.closed:
            return
        self.closed = True
        with nogil:
            pthread_mutex_lock(&self.s.lock)
            self.s.stop = 1
            pthread_cond_signal(&self.s.wake)
            pthread_mutex_unlock(&self.s.lock)
            pthread_join(self.s.thread, NULL)
            pthread_cond_destroy(&self.s.wake)
            pthread_mutex_destroy(&self.s.lock)

    cdef uint64_t _push(self, op_t *op) except 0:
        cdef op_t *grown
        cdef size_t cap
        cdef int bad = 0
        op.ticket = self.next_ticket + 1
        with nogil:
            pthread_mutex_lock(&self.s.lock)
            if self.s.inbox_n == self.s.inbox_cap:
                cap = self.s.inbox_cap * 2 if self.s.inbox_cap else 64
                grown = <op_t *>realloc(self.s.inbox, cap * sizeof(op_t))
                if grown == NULL:
                    bad = 1
                else:
                    self.s.inbox = grown
                    self.s.inbox_cap = cap
            if not bad:
                self.s.inbox[self.s.inbox_n] = op[0]
                self.s.inbox_n += 1
                pthread_cond_signal(&self.s.wake)
            pthread_mutex_unlock(&self.s.lock)
        if bad:
            raise MemoryError
        self.next_ticket += 1
        return self.next_ticket

    cdef bint _idle(self) noexcept:
        cdef bint idle
        pthread_mutex_lock(&self.s.lock)
        idle = self.s.done == self.next_ticket and self.s.failed == 0
        pthread_mutex_unlock(&self.s.lock)
        return idle

    cdef void _write_here(self, op_t *op) noexcept:
        """Does in the caller's thread what the thread would do; it is idle and stays so."""
        with nogil:
            if write_run(self.s, op, 1) == 0 and sync_run(self.s, op.fd) == 0 \
                    and mark(self.s, op) == 0:
                pthread_mutex_lock(&self.s.lock)
                self.s.done = op.ticket
                pthread_mutex_unlock(&self.s.lock)

    cdef bint lone_write(self, int fd, int64_t offset, const uint8_t *p, size_t n,
                         bint kick) noexcept:
        """Writes in the caller's thread what nothing in flight precedes; `lone_sync` is next.

        `kick`: the disk begins with it at once, for a caller that has something to do meanwhile.
        False: the writer failed, or it has something in flight.
        Blocking: the write, without the GIL. Durability: none yet.
        """
        cdef op_t op
        cdef int rc
        if self.closed or not self._idle():
            return False
        memset(&op, 0, sizeof(op))
        op.fd = fd
        op.offset = offset
        op.p = p
        op.n = n
        with nogil:
            rc = write_run(self.s, &op, 1)
            if rc == 0 and kick:
                # Only a hint: what goes wrong here the sync says.
                c_sync_file_range(fd, offset, <int64_t>n, SYNC_FILE_RANGE_WRITE)
        return rc == 0

    cdef uint64_t lone_sync(self, int fd) noexcept:
        """Syncs what `lone_write` wrote. The ticket, which is finished; 0: the writer failed.

        Blocking: the sync, without the GIL. Durability: it is durable.
        """
        cdef uint64_t ticket = self.next_ticket + 1
        self.next_ticket = ticket
        with nogil:
            if sync_run(self.s, fd) == 0:
                pthread_mutex_lock(&self.s.lock)
                self.s.done = ticket
                pthread_mutex_unlock(&self.s.lock)
        return ticket if self._done() == ticket else 0

    cdef void lone_mark(self, int fd, int64_t offset, const uint8_t *p, size_t n) noexcept:
        """Writes the durable mark behind what `lone_sync` made durable; not synced."""
        cdef op_t op
        memset(&op, 0, sizeof(op))
        op.fd = fd
        op.offset = offset
        op.p = p
        op.tail = n
        with nogil:
            mark(self.s, &op)

    def submit(self, int handle, uint64_t offset, data, size_t tail=0, bint here=False):
        """Queues `data` without its last `tail` bytes to be written at `offset` and synced.

        Returns its ticket. `data` is held, not copied, until completed() has passed the ticket.
        With `here`, and nothing in flight, the caller's thread writes and syncs: a lone record
        is durable two wake-ups sooner.
        Blocking: never; with `here` the write and the sync, without the GIL. Durability: when
        completed() >= ticket.
        """
        cdef op_t op
        cdef const uint8_t[::1] view
        if self.closed:
            raise DiskError("the log's writer is closed")
        held = memoryview(data)
        view = held
        if <size_t>view.shape[0] <= tail:
            raise AssertionError("nothing to write")
        memset(&op, 0, sizeof(op))
        op.fd = handle
        op.offset = <int64_t>offset
        op.p = &view[0]
        op.n = <size_t>view.shape[0] - tail
        op.tail = tail
        if here and self._idle():
            self.next_ticket += 1
            op.ticket = self.next_ticket
            self._write_here(&op)
            return op.ticket
        ticket = self._push(&op)
        self.held.append((ticket, held, now_us()))
        return ticket

    def rename(self, str src, str dst, int folder):
        """Queues a rename, done after all submitted before is synced, then syncs the folder."""
        cdef op_t op
        cdef bytes a = os.fsencode(src), b = os.fsencode(dst)
        if self.closed:
            raise DiskError("the log's writer is closed")
        memset(&op, 0, sizeof(op))
        op.fd = folder
        op.src = strdup(a)
        op.dst = strdup(b)
        if op.src == NULL or op.dst == NULL:
            free(op.src)
            free(op.dst)
            raise MemoryError
        ticket = self._push(&op)
        self.held.append((ticket, None, now_us()))
        return ticket

    def fileno(self):
        """The eventfd that becomes readable when a ticket finished or the writer failed."""
        return self.event_fd

    def completed(self):
        """The highest finished ticket. Clears the eventfd and lets finished buffers go."""
        cdef uint64_t done
        if self.event_fd >= 0:
            try:
                os.eventfd_read(self.event_fd)
            except BlockingIOError:
                pass
        done = self._done()
        held = self.held
        while held and held[0][0] <= done:
            held.popleft()
        return done

    cdef uint64_t _done(self) noexcept:
        cdef uint64_t done
        if self.closed:
            return self.s.done
        pthread_mutex_lock(&self.s.lock)
        done = self.s.done
        pthread_mutex_unlock(&self.s.lock)
        return done

    @property
    def error(self):
        """(errno, text) of the failure that latched, or None."""
        cdef int code
        if self.s == NULL:
            return None
        code = self.s.failed
        if code == 0:
            return None
        return code, f"{self.s.failed_in.decode()}: {os.strerror(code)}"

    @property
    def in_flight_bytes(self):
        """Bytes submitted and not yet seen finished by completed()."""
        return sum(len(h) for _, h, _ in self.held if h is not None)

    def in_flight_age_us(self):
        """Microseconds since the oldest unfinished ticket was submitted; 0 when idle."""
        done = self._done()
        for ticket, _, since in self.held:
            if ticket > done:
                return now_us() - since
        return 0

    def last_progress_us(self):
        """Monotonic time (microseconds) when the thread last woke or finished a system call."""
        return self.s.progress_us

    def stats(self):
        """Counters since the start: syncs, bytes, sync_us_sum, sync_us_max, and `buckets`,
        numpy u64[32]: syncs that took [2^i, 2^(i+1)) microseconds (bucket 0: below 2)."""
        import numpy as np      # not at the start of each process

        cdef int i
        buckets = np.zeros(BUCKETS, np.uint64)
        cdef uint64_t[::1] b = buckets
        # Aligned words, each read whole; a reader may see one sync counted and not yet summed.
        for i in range(BUCKETS):
            b[i] = self.s.buckets[i]
        return {"syncs": self.s.syncs, "bytes": self.s.bytes, "sync_us_sum": self.s.sync_us_sum,
                "sync_us_max": self.s.sync_us_max, "buckets": buckets}

    def close(self):
        """Finishes what was submitted, ends the thread. completed() and error stay readable.

        Blocking: for the syncs that are under way.
        """
        self._stop()
        if self.event_fd >= 0:
            done = self._done()
            while self.held and self.held[0][0] <= done:
                self.held.popleft()
            fd, self.event_fd = self.event_fd, -1
            os.close(fd)
