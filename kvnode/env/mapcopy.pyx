"""A compacting copy of a map into a file, at a bounded rate, beside the loop that goes on writing.

Caller: env/generation.py, in a thread of its own. Two native threads do the work, one reads the
map (mdb_env_copyfd2) into a pipe, the other empties the pipe into the file. Neither ever needs the
GIL, both run at a low priority: the loop's thread is scheduled before them.

Invariants
 1. What is written and not yet on the disk stays below WINDOW_BYTES: a later sync is short, and a
    journal commit that has to wait for the file's data waits for little.
 2. No faster than the rate, measured from the beginning; pauses come in slices, so that stop()
    is heard within STOP_NS.
 3. The copy reads one snapshot and pins it until run() returns.

Not durable on return: the caller syncs the file.
"""

import os

from libc.errno cimport EINTR, errno
from libc.stdint cimport int64_t, uint8_t, uint64_t
from libc.stdlib cimport free, malloc
from posix.unistd cimport close, read, write

from kvnode.env.lmdbstore cimport (
    MDB_CP_COMPACT,
    LmdbStore,
    lm_env,
    mdb_env_copyfd2,
    pthread_mutex_lock,
    pthread_mutex_unlock,
)

from kvnode._core.storetxn import StoreError
from kvnode.base.errors import DiskError

cdef extern from "<fcntl.h>" nogil:
    int sync_file_range(int fd, int64_t offset, int64_t nbytes, unsigned int flags) noexcept
    unsigned int SYNC_FILE_RANGE_WAIT_BEFORE
    unsigned int SYNC_FILE_RANGE_WRITE
    unsigned int SYNC_FILE_RANGE_WAIT_AFTER

cdef extern from "<time.h>" nogil:
    struct timespec:
        long tv_sec
        long tv_nsec
    int CLOCK_MONOTONIC
    int clock_gettime(int clock, timespec *t) noexcept
    int nanosleep(const timespec *t, timespec *left) noexcept

cdef extern from "<sys/resource.h>" nogil:
    int PRIO_PROCESS
    int setpriority(int which, unsigned int who, int value) noexcept

cdef extern from "<signal.h>" nogil:
    ctypedef struct sigset_t:
        pass
    int SIG_SETMASK
    int sigfillset(sigset_t *s) noexcept
    int pthread_sigmask(int how, const sigset_t *s, sigset_t *old) noexcept

cdef extern from "<pthread.h>" nogil:
    ctypedef struct pthread_t:
        pass
    int pthread_create(
        pthread_t *t, void *attr, void *(*run)(void *) noexcept nogil, void *arg
    ) noexcept
    int pthread_join(pthread_t t, void **result) noexcept

cdef enum:
    PIECE_BYTES = 256 << 10
    WINDOW_BYTES = 2 << 20
    STOP_NS = 20000000
    NICE = 10


ctypedef struct Job:
    lm_env *env
    int reading         # ends of the pipe; each is closed by the thread that uses it
    int writing
    int out
    uint64_t rate
    uint64_t copied
    int stopped
    int map_error       # of mdb_env_copyfd2, LMDB's or errno's
    int file_error


cdef int64_t now_ns() noexcept nogil:
    cdef timespec t
    clock_gettime(CLOCK_MONOTONIC, &t)
    return <int64_t>t.tv_sec * 1000000000 + t.tv_nsec


cdef void pause(Job *job, int64_t until) noexcept nogil:
    cdef int64_t left = until - now_ns()
    cdef timespec t
    t.tv_sec = 0
    while left > 0 and not job.stopped:
        t.tv_nsec = left if left < STOP_NS else STOP_NS
        nanosleep(&t, NULL)
        left = until - now_ns()


cdef void *read_map(void *arg) noexcept nogil:
    cdef Job *job = <Job *>arg
    setpriority(PRIO_PROCESS, 0, NICE)      # of this thread: Linux counts it a thread
    job.map_error = mdb_env_copyfd2(job.env.env, job.writing, MDB_CP_COMPACT)
    close(job.writing)
    return NULL


cdef int put_piece(Job *job, const uint8_t *p, size_t n) noexcept nogil:
    cdef ssize_t done
    while n:
        done = write(job.out, p, n)
        if done < 0:
            if errno == EINTR:
                continue
            return errno
        p += done
        n -= <size_t>done
    return 0


cdef void write_back(Job *job, int64_t n) noexcept nogil:
    """Starts the writing of the last piece, waits for the one a window behind it. Hints only."""
    cdef int64_t at = <int64_t>job.copied - n
    sync_file_range(job.out, at, n, SYNC_FILE_RANGE_WRITE)
    at -= WINDOW_BYTES
    if at >= 0:
        sync_file_range(
            job.out, at, n,
            SYNC_FILE_RANGE_WAIT_BEFORE | SYNC_FILE_RANGE_WRITE | SYNC_FILE_RANGE_WAIT_AFTER,
        )


cdef void *write_file(void *arg) noexcept nogil:
    cdef Job *job = <Job *>arg
    cdef uint8_t *piece = <uint8_t *>malloc(PIECE_BYTES)
    cdef int64_t begun = now_ns()
    cdef ssize_t n = 0
    setpriority(PRIO_PROCESS, 0, NICE)
    while piece != NULL and not job.stopped:
        n = read(job.reading, piece, PIECE_BYTES)
        if n < 0 and errno == EINTR:
            continue
        if n <= 0:
            break
        job.file_error = put_piece(job, piece, <size_t>n)
        if job.file_error:
            break
        job.copied += <uint64_t>n
        write_back(job, n)
        if job.rate:
            pause(job, begun + <int64_t>(job.copied * 1e9 / job.rate))
    close(job.reading)          # the map's reader, if it still writes, ends with EPIPE
    free(piece)
    return NULL


cdef int run_both(Job *job) noexcept nogil:
    """0, or the error of a thread that could not be started."""
    cdef pthread_t reader
    cdef pthread_t writer
    cdef sigset_t all_signals
    cdef sigset_t before
    cdef int rc
    sigfillset(&all_signals)
    pthread_sigmask(SIG_SETMASK, &all_signals, &before)
    rc = pthread_create(&writer, NULL, write_file, job)
    if rc:
        close(job.reading)
        close(job.writing)
    else:
        rc = pthread_create(&reader, NULL, read_map, job)
        if rc:
            close(job.writing)
        else:
            pthread_join(reader, NULL)
        pthread_join(writer, NULL)
    pthread_sigmask(SIG_SETMASK, &before, NULL)
    return rc


cdef class MapCopy:
    """One copy of `store` into the open file `out`; at most `bytes_per_second` (0: unbounded)."""

    cdef Job job
    cdef LmdbStore store

    def __cinit__(self, LmdbStore store not None, int out, uint64_t bytes_per_second=0):
        self.store = store
        self.job.env = store.lm
        self.job.out = out
        self.job.rate = bytes_per_second

    def run(self):
        """Copies; returns whether it came to the end (False: stopped). Blocking: without the GIL.

        SIGPIPE must be ignored, as Python does. Errors: StoreError, DiskError.
        """
        cdef int rc
        self.store.need()
        self.job.reading, self.job.writing = os.pipe2(os.O_CLOEXEC)
        pthread_mutex_lock(&self.store.lm.lock)
        self.store.lm.copies += 1
        pthread_mutex_unlock(&self.store.lm.lock)
        with nogil:
            rc = run_both(&self.job)
            pthread_mutex_lock(&self.store.lm.lock)
            self.store.lm.copies -= 1
            pthread_mutex_unlock(&self.store.lm.lock)
        if self.job.stopped:
            return False
        if rc:
            raise StoreError(f"{self.store.path}: no thread for the copy: {os.strerror(rc)}")
        if self.job.file_error:
            raise DiskError(f"copy of {self.store.path}: {os.strerror(self.job.file_error)}")
        self.store.check(self.job.map_error, "copy")
        return True

    def stop(self):
        """From any thread: run() returns soon."""
        self.job.stopped = 1

    @property
    def copied(self):
        """Bytes written so far."""
        return self.job.copied
