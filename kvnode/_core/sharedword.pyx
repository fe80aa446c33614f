"""Words of 64 bits that the processes of one node share through a file in memory.

Role: what must be known without asking. Consensus stores the commit index with the sole-voter
flag before the index leaves for anyone, the applier its applied index, each gateway the lowest
revision it is reading. Loads and stores are atomic and ordered (acquire, release).
Callers: procs/. The supervisor makes the file anew at each start of the node.

Slots are in sharedword.pxd.
"""

from libc.stdint cimport int64_t, uint64_t

import mmap
import os

cdef extern from *:
    """
    #include <linux/futex.h>
    #include <stdint.h>
    #include <sys/syscall.h>
    #include <time.h>
    #include <unistd.h>
    static inline uint64_t kv_word_load(uint64_t *p) {
      return __atomic_load_n(p, __ATOMIC_SEQ_CST);
    }
    static inline void kv_word_store(uint64_t *p, uint64_t v) {
      __atomic_store_n(p, v, __ATOMIC_SEQ_CST);
    }
    static inline void kv_word_add(uint64_t *p, int64_t n) {
      __atomic_add_fetch(p, n, __ATOMIC_SEQ_CST);
    }
    // The low half of a word, as the futex calls see it.
    static inline void kv_word_wait(uint64_t *p, uint64_t seen, long us) {
      struct timespec t = {us / 1000000, us % 1000000 * 1000};
      syscall(SYS_futex, (uint32_t *)p, FUTEX_WAIT, (uint32_t)seen, &t, NULL, 0);
    }
    static inline void kv_word_wake(uint64_t *p) {
      syscall(SYS_futex, (uint32_t *)p, FUTEX_WAKE, 0x7fffffff, NULL, NULL, 0);
    }
    """
    uint64_t kv_word_load(uint64_t *p) noexcept nogil
    void kv_word_add(uint64_t *p, int64_t n) noexcept nogil
    void kv_word_wait(uint64_t *p, uint64_t seen, long us) noexcept nogil
    void kv_word_wake(uint64_t *p) noexcept nogil
    void kv_word_store(uint64_t *p, uint64_t v) noexcept nogil

SOLE = 1 << 63
COMMIT, APPLIED, LIFE, TERM, GENERATION, DAMAGE, READING = (
    WORD_COMMIT, WORD_APPLIED, WORD_LIFE, WORD_TERM, WORD_GENERATION, WORD_DAMAGE, WORD_READING,
)
ANSWERED = WORD_ANSWERED
BEAT, LEASES = WORD_BEAT, WORD_LEASES
LEASE_COUNT, LEASES_GRANTED, LEASES_REVOKED, LEASES_RENEWED, LEASES_EXPIRED = (
    WORD_LEASE_COUNT, WORD_LEASES_GRANTED, WORD_LEASES_REVOKED, WORD_LEASES_RENEWED,
    WORD_LEASES_EXPIRED,
)


cdef class SharedWords:
    """The words in the file at `path`; `create` makes it anew, all zero, mode 0600.

    `fd:N` is descriptor N, a memfd: a store into a file's page may wait for its disk.
    """

    def __init__(self, str path, bint create=False):
        if path.startswith("fd:"):
            fd = os.dup(int(path[3:]))
            if create:
                os.ftruncate(fd, WORD_COUNT * 8)
        elif create:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
            os.ftruncate(fd, WORD_COUNT * 8)
        else:
            fd = os.open(path, os.O_RDWR | os.O_NOFOLLOW)
        try:
            self._map = mmap.mmap(fd, WORD_COUNT * 8)
        finally:
            os.close(fd)
        cdef unsigned char[::1] view = self._map
        self._view = view
        self.words = <uint64_t *> &view[0]

    cdef uint64_t load(self, int slot) noexcept nogil:
        return kv_word_load(self.words + slot)

    cdef void store(self, int slot, uint64_t value) noexcept nogil:
        kv_word_store(self.words + slot, value)

    cdef void store_applied(self, uint64_t index) noexcept nogil:
        """WORD_APPLIED, and who waits for it is woken."""
        kv_word_store(self.words + WORD_APPLIED, index)
        if kv_word_load(self.words + WORD_WAITING):
            kv_word_wake(self.words + WORD_APPLIED)

    def wait_applied(self, uint64_t index, long most_us) -> bool:
        """Blocking: until the applied index is at least `index`, about `most_us` at most."""
        cdef uint64_t *word = self.words + WORD_APPLIED
        cdef uint64_t seen
        cdef int turns = 0
        with nogil:
            kv_word_add(self.words + WORD_WAITING, 1)
            seen = kv_word_load(word)
            while seen < index and turns < 4:
                kv_word_wait(word, seen, most_us // 4)
                seen = kv_word_load(word)
                turns += 1
            kv_word_add(self.words + WORD_WAITING, -1)
        return seen >= index

    def get(self, int slot) -> int:
        """The word in `slot`."""
        assert 0 <= slot < WORD_COUNT
        return kv_word_load(self.words + slot)

    def set(self, int slot, value) -> None:
        """Stores `value` (0 to 2**64 - 1) in `slot`."""
        assert 0 <= slot < WORD_COUNT
        kv_word_store(self.words + slot, <uint64_t> value)
