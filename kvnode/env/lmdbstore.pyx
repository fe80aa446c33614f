"""LmdbStore: the store's function table over one LMDB environment, and what checkpoints need.

The only LMDB engine of kvnode: it links the system's liblmdb, and no process opens the same map
through another one (closing one engine's handle drops the other's file locks).

Callers: the applier (the one writer), gateways and tools (read-only), env.store (open,
checkpoints, generations). Trees are named databases; see TREE_NAMES.

Invariants
 1. Opened with MDB_NOSYNC: a commit is visible at once and durable only by a checkpoint
    (env.store). Nothing here syncs on its own.
 2. MDB_NOTLS: a thread may hold several read transactions, and a read transaction may end in
    another thread than it began in.
 3. After a commit that failed for any reason but a full map the environment is latched: every
    later begin fails. LMDB itself would accept the next commit after EIO.
 4. A full map is no damage: the transaction is aborted, grow() makes room, the caller runs its
    transaction again.
 5. mdb_env_set_mapsize remaps, so it runs only while this process has no write transaction, no
    active read transaction and no running copy. Pins stay: a transaction without cursors holds
    no pointer into the map.
 6. Ended read transactions are kept reset in a list and renewed: a snapshot costs about 0.1 us
    and no lock of LMDB's reader table.

 7. A process opens a map once: a second environment over it would find the lock file "unused"
    (fcntl locks do not conflict within a process) and reset it under the first.

WRITEMAP (off unless asked for) halves a put's CPU time and takes the copying out of commit. On a
full disk a store into a page without blocks would kill the process with SIGBUS, so with it
 8. every page that a transaction may write has its blocks before: fallocate ahead of the last
    page in use, the transaction's own growth estimated from above. No room is ST_FAILED before
    anything is written (disk_full), nothing is latched, and the next transaction tries again.
It needs a file system that overwrites in place (ext4, xfs): on a copying one (btrfs, zfs)
allocated blocks are no promise. The file is as long as the reserved map, and sparse.
"""

import os

from libc.errno cimport ENOMEM, ENOSPC, errno
from libc.stdint cimport uint8_t, uint64_t
from libc.stdio cimport snprintf
from libc.stdlib cimport calloc, free
from libc.string cimport memset, strerror
from posix.unistd cimport fdatasync

from kvnode._core.buf cimport kv_slice
from kvnode._core.meters cimport H_COMMIT, meter_now_ns, meter_observe
from kvnode._core.store cimport (
    ST_EXISTS,
    ST_FAILED,
    ST_KEY_MAX,
    ST_NOTFOUND,
    ST_OK,
    TREE_COUNT,
    Store,
)

from kvnode._core.storetxn import ReadTxn, StoreError, WriteTxn
from kvnode.base.errors import CorruptionError

cdef extern from "<fcntl.h>" nogil:
    int fallocate(int fd, int mode, long offset, long length) noexcept
    int sync_file_range(int fd, long offset, long nbytes, unsigned int flags) noexcept
    enum:
        SYNC_FILE_RANGE_WRITE

cdef extern from "<sys/mman.h>" nogil:
    int madvise(void *address, size_t length, int advice) noexcept
    enum:
        MADV_DONTNEED

cdef extern from "<sys/statvfs.h>" nogil:
    ctypedef struct statvfs_t "struct statvfs":
        unsigned long f_frsize
        unsigned long f_bavail
    int fstatvfs(int fd, statvfs_t *disk) noexcept

cdef enum:
    CUR_FRESH = 0
    CUR_AT = 1
    CUR_END = 2

    IDLE_READS_MAX = 64

    # WRITEMAP's allocation ahead: how often a transaction looks, and what it keeps free
    ROOM_TICKS = 64
    ROOM_BYTES = 4 << 20
    KEEP_FREE_BYTES = 64 << 20
    KEEP_LAST_BYTES = 1 << 20

    RELEASE_PIECE_BYTES = 16 << 20

    # LMDB's "this file is not what it should be" codes
    LM_PAGE_NOTFOUND = -30797
    LM_CORRUPTED = -30796
    LM_PANIC = -30795
    LM_VERSION_MISMATCH = -30794
    LM_INVALID = -30793

TREE_NAMES = (
    b"meta", b"revs", b"keys", b"hist", b"sessions", b"leases", b"lease_keys", b"auth"
)
assert len(TREE_NAMES) == TREE_COUNT


# Maps open in this process, by real path (invariant 7).
_open_maps = set()


# ---- errors ------------------------------------------------------------------------------------

cdef int fail(lm_env *e, int rc, const char *what) noexcept nogil:
    if rc == MDB_MAP_FULL:
        e.map_full = True
    snprintf(e.error, sizeof(e.error), b"lmdb: %s: %s", what, mdb_strerror(rc))
    return ST_FAILED


cdef int fail_txn(lm_txn *t, int rc, const char *what) noexcept nogil:
    t.failed = True
    return fail(t.env, rc, what)


cdef int misuse(lm_txn *t, const char *what) noexcept nogil:
    t.failed = True
    snprintf(t.env.error, sizeof(t.env.error), b"lmdb: %s", what)
    return ST_FAILED


cdef const char *lm_last_error(void *env) noexcept nogil:
    return (<lm_env *>env).error


cdef inline MDB_val to_val(kv_slice s) noexcept nogil:
    cdef MDB_val v
    v.mv_size = s.n
    v.mv_data = <void *>s.p
    return v


cdef inline void from_val(MDB_val v, kv_slice *s) noexcept nogil:
    s.p = <const uint8_t *>v.mv_data
    s.n = v.mv_size


# ---- transactions ------------------------------------------------------------------------------

cdef int refused(lm_env *e) noexcept nogil:
    """A latched environment answers everything with the text of its first failure."""
    return ST_FAILED if e.latched else ST_OK


cdef int lm_begin_write(void *env, void **txn) noexcept nogil:
    cdef lm_env *e = <lm_env *>env
    cdef lm_txn *t
    cdef MDB_envinfo info
    cdef int rc
    if refused(e) != ST_OK:
        return ST_FAILED
    t = <lm_txn *>calloc(1, sizeof(lm_txn))
    if t == NULL:
        return fail(e, ENOMEM, b"begin write")
    rc = mdb_txn_begin(e.env, NULL, 0, &t.txn)
    if rc:
        free(t)
        return fail(e, rc, b"begin write")
    t.env = e
    t.writes = True
    if e.allocated:
        mdb_env_info(e.env, &info)
        t.base = <uint64_t>(info.me_last_pgno + 1) * e.page_bytes
        if make_room(e, t.base + ROOM_BYTES) != ST_OK:
            mdb_txn_abort(t.txn)
            free(t)
            return ST_FAILED
    e.writing = True
    txn[0] = t
    return ST_OK


cdef int make_room(lm_env *e, uint64_t end) noexcept nogil:
    """Gives the file blocks up to `end` and some more, or fails as a full disk."""
    cdef statvfs_t disk
    cdef uint64_t more
    cdef uint64_t free_bytes = 0
    cdef uint64_t at = e.allocated // e.page_bytes * e.page_bytes
    cdef int rc = 0
    if end <= e.allocated:
        return ST_OK
    if fstatvfs(e.fd, &disk) == 0:
        free_bytes = <uint64_t>disk.f_bavail * disk.f_frsize
    more = end // 8
    if more < 2 * ROOM_BYTES:
        more = 2 * ROOM_BYTES
    # What goes ahead of need leaves room for the log; what is needed leaves it for a checkpoint.
    if end - at + more + KEEP_FREE_BYTES > free_bytes:
        more = 0
    if end - at + KEEP_LAST_BYTES > free_bytes:
        rc = ENOSPC
    elif fallocate(e.fd, 0, at, end + more - at) != 0:
        rc = errno
    e.disk_full = rc == ENOSPC
    if rc:
        return fail(e, rc, b"allocate")
    e.allocated = end + more
    return ST_OK


cdef void drop_cursors(lm_txn *t, bint close) noexcept nogil:
    """Frees what the caller left open; LMDB closes a write transaction's cursors itself."""
    cdef lm_cur *c = t.cursors
    cdef lm_cur *nx
    while c != NULL:
        nx = c.next
        if close:
            mdb_cursor_close(c.cursor)
        free(c)
        c = nx
    t.cursors = NULL


cdef uint64_t dirtied_pages(lm_txn *t) noexcept nogil:
    """Pages this transaction wrote, from above: a put dirties its leaf, at most all of a tree."""
    cdef MDB_stat st
    cdef uint64_t pages = 4
    cdef uint64_t all_pages
    cdef int i
    for i in range(TREE_COUNT):
        if t.touched[i] == 0:
            continue
        if mdb_stat(t.txn, t.env.dbi[i], &st):
            continue
        all_pages = st.ms_branch_pages + st.ms_leaf_pages
        pages += t.touched[i] if t.touched[i] < all_pages else all_pages
        pages += st.ms_depth
    return pages + t.reserved // t.env.page_bytes


cdef int lm_commit(void *txn) noexcept nogil:
    cdef lm_txn *t = <lm_txn *>txn
    cdef lm_env *e = t.env
    cdef uint64_t pages, began
    cdef int rc
    if t.failed:
        lm_abort(txn)
        return ST_FAILED
    pages = dirtied_pages(t)
    drop_cursors(t, False)
    began = meter_now_ns()
    rc = mdb_txn_commit(t.txn)
    meter_observe(H_COMMIT, meter_now_ns() - began, 1)
    free(t)
    e.writing = False
    if rc:
        if rc != MDB_MAP_FULL:
            e.latched = True
        return fail(e, rc, b"commit")
    e.dirtied += pages * e.page_bytes
    return ST_OK


cdef void lm_abort(void *txn) noexcept nogil:
    cdef lm_txn *t = <lm_txn *>txn
    drop_cursors(t, False)
    mdb_txn_abort(t.txn)
    t.env.writing = False
    free(t)


cdef int renew(lm_env *e, lm_txn *t) noexcept nogil:
    if t.txn != NULL:
        return mdb_txn_renew(t.txn)
    return mdb_txn_begin(e.env, NULL, MDB_RDONLY, &t.txn)


cdef int adopt_map(lm_env *e) noexcept nogil:
    """Another process grew the map: take its size, if no pointer into the old one is held."""
    cdef int rc = MDB_MAP_RESIZED
    pthread_mutex_lock(&e.lock)
    if e.active_reads == 1 and e.copies == 0 and not e.writing:
        rc = mdb_env_set_mapsize(e.env, 0)
    pthread_mutex_unlock(&e.lock)
    return rc


cdef int lm_begin_read(void *env, void **txn) noexcept nogil:
    cdef lm_env *e = <lm_env *>env
    cdef lm_txn *t
    cdef int rc
    if refused(e) != ST_OK:
        return ST_FAILED
    pthread_mutex_lock(&e.lock)
    e.active_reads += 1
    t = e.idle
    if t != NULL:
        e.idle = t.next
    pthread_mutex_unlock(&e.lock)
    if t == NULL:
        t = <lm_txn *>calloc(1, sizeof(lm_txn))
        if t == NULL:
            read_over(e)
            return fail(e, ENOMEM, b"begin read")
        t.env = e
    t.next = NULL
    rc = renew(e, t)
    if rc == MDB_MAP_RESIZED:
        rc = adopt_map(e)
        if rc == 0:
            rc = renew(e, t)
    if rc:
        if t.txn != NULL:
            mdb_txn_abort(t.txn)
        free(t)
        read_over(e)
        return fail(e, rc, b"begin read")
    txn[0] = t
    return ST_OK


cdef void read_over(lm_env *e) noexcept nogil:
    pthread_mutex_lock(&e.lock)
    e.active_reads -= 1
    pthread_mutex_unlock(&e.lock)


cdef void lm_end_read(void *txn) noexcept nogil:
    cdef lm_txn *t = <lm_txn *>txn
    cdef lm_env *e = t.env
    cdef lm_txn *idle
    cdef int n = 0
    drop_cursors(t, True)
    mdb_txn_reset(t.txn)
    pthread_mutex_lock(&e.lock)
    e.active_reads -= 1
    idle = e.idle
    while idle != NULL and n < IDLE_READS_MAX:
        n += 1
        idle = idle.next
    if n < IDLE_READS_MAX:
        t.next = e.idle
        e.idle = t
        t = NULL
    pthread_mutex_unlock(&e.lock)
    if t != NULL:
        mdb_txn_abort(t.txn)
        free(t)


# ---- single operations -------------------------------------------------------------------------

cdef int lm_get(void *txn, int tree, kv_slice key, kv_slice *val) noexcept nogil:
    cdef lm_txn *t = <lm_txn *>txn
    cdef MDB_val k = to_val(key)
    cdef MDB_val v
    cdef int rc
    if key.n == 0 or key.n > ST_KEY_MAX:
        return ST_NOTFOUND
    rc = mdb_get(t.txn, t.env.dbi[tree], &k, &v)
    if rc == MDB_NOTFOUND:
        return ST_NOTFOUND
    if rc:
        return fail_txn(t, rc, b"get")
    from_val(v, val)
    return ST_OK


cdef int writing(lm_txn *t, int tree, size_t key_bytes, size_t val_bytes) noexcept nogil:
    """Opens the tree's write cursor, counts the write, and sees that there is room for it."""
    cdef int rc
    if not t.writes:
        return misuse(t, b"write in a read transaction")
    if key_bytes == 0 or key_bytes > ST_KEY_MAX:
        return misuse(t, b"key is empty or longer than 511 bytes")
    t.found[tree] = False
    if t.write_cursor[tree] == NULL:
        rc = mdb_cursor_open(t.txn, t.env.dbi[tree], &t.write_cursor[tree])
        if rc:
            return fail_txn(t, rc, b"open cursor")
    t.touched[tree] += 1
    if val_bytes > t.env.page_bytes // 2:
        t.reserved += val_bytes + t.env.page_bytes
        t.ticks = ROOM_TICKS
    t.ticks += 1
    if t.ticks >= ROOM_TICKS and t.env.allocated:
        return check_room(t)
    return ST_OK


cdef int check_room(lm_txn *t) noexcept nogil:
    """Room for all that this transaction may have put behind the file's used end so far.

    A tree's dirty pages are at most its pages, and at most three a write (leaf, split, branch).
    """
    cdef MDB_stat st
    cdef uint64_t pages = 0
    cdef uint64_t all_pages
    cdef int i
    t.ticks = 0
    for i in range(TREE_COUNT):
        if t.touched[i] and mdb_stat(t.txn, t.env.dbi[i], &st) == 0:
            all_pages = st.ms_branch_pages + st.ms_leaf_pages + 3 * ROOM_TICKS
            pages += 3 * t.touched[i] if 3 * t.touched[i] < all_pages else all_pages
    pages += 2 * t.reserved // t.env.page_bytes
    if make_room(t.env, t.base + pages * t.env.page_bytes + ROOM_BYTES) != ST_OK:
        t.failed = True
        return ST_FAILED
    return ST_OK


cdef int lm_put(void *txn, int tree, kv_slice key, kv_slice val) noexcept nogil:
    cdef lm_txn *t = <lm_txn *>txn
    cdef MDB_val k = to_val(key)
    cdef MDB_val v = to_val(val)
    cdef int rc
    if writing(t, tree, key.n, val.n) != ST_OK:
        return ST_FAILED
    rc = mdb_cursor_put(t.write_cursor[tree], &k, &v, 0)
    if rc:
        return fail_txn(t, rc, b"put")
    return ST_OK


cdef int lm_put_new(
    void *txn, int tree, kv_slice key, kv_slice val, kv_slice *existing
) noexcept nogil:
    cdef lm_txn *t = <lm_txn *>txn
    cdef MDB_val k = to_val(key)
    cdef MDB_val v = to_val(val)
    cdef int rc
    if writing(t, tree, key.n, val.n) != ST_OK:
        return ST_FAILED
    rc = mdb_cursor_put(t.write_cursor[tree], &k, &v, MDB_NOOVERWRITE)
    if rc == MDB_KEYEXIST:
        from_val(v, existing)
        t.found[tree] = True
        return ST_EXISTS
    if rc:
        return fail_txn(t, rc, b"put_new")
    return ST_OK


cdef int lm_put_over(void *txn, int tree, kv_slice key, kv_slice val) noexcept nogil:
    cdef lm_txn *t = <lm_txn *>txn
    cdef MDB_val k = to_val(key)
    cdef MDB_val v = to_val(val)
    cdef int rc
    if not t.writes or not t.found[tree]:
        return misuse(t, b"put_over without a put_new that found a value of this size")
    t.found[tree] = False
    rc = mdb_cursor_put(t.write_cursor[tree], &k, &v, MDB_CURRENT)
    if rc:
        return fail_txn(t, rc, b"put_over")
    return ST_OK


cdef int lm_append(void *txn, int tree, kv_slice key, size_t n, uint8_t **dst) noexcept nogil:
    cdef lm_txn *t = <lm_txn *>txn
    cdef MDB_val k = to_val(key)
    cdef MDB_val v
    cdef int rc
    t.reserved += key.n + n + 16
    if n > t.env.page_bytes:
        t.ticks = ROOM_TICKS
    if writing(t, tree, key.n, 0) != ST_OK:
        return ST_FAILED
    v.mv_size = n
    v.mv_data = NULL
    rc = mdb_cursor_put(t.write_cursor[tree], &k, &v, MDB_APPEND | MDB_RESERVE)
    if rc == MDB_KEYEXIST:
        return misuse(t, b"append of a key that does not sort last")
    if rc:
        return fail_txn(t, rc, b"append")
    t.touched[tree] -= 1
    dst[0] = <uint8_t *>v.mv_data
    return ST_OK


cdef int lm_delete(void *txn, int tree, kv_slice key) noexcept nogil:
    cdef lm_txn *t = <lm_txn *>txn
    cdef MDB_val k = to_val(key)
    cdef int rc
    if writing(t, tree, key.n, 0) != ST_OK:
        return ST_FAILED
    rc = mdb_del(t.txn, t.env.dbi[tree], &k, NULL)
    if rc == MDB_NOTFOUND:
        return ST_NOTFOUND
    if rc:
        return fail_txn(t, rc, b"delete")
    return ST_OK


# ---- cursors -----------------------------------------------------------------------------------

cdef int lm_cursor_open(void *txn, int tree, void **cur) noexcept nogil:
    cdef lm_txn *t = <lm_txn *>txn
    cdef lm_cur *c = <lm_cur *>calloc(1, sizeof(lm_cur))
    cdef int rc
    if c == NULL:
        return fail_txn(t, ENOMEM, b"open cursor")
    rc = mdb_cursor_open(t.txn, t.env.dbi[tree], &c.cursor)
    if rc:
        free(c)
        return fail_txn(t, rc, b"open cursor")
    c.txn = t
    c.next = t.cursors
    if c.next != NULL:
        c.next.prev = c
    t.cursors = c
    cur[0] = c
    return ST_OK


cdef void lm_cursor_close(void *cur) noexcept nogil:
    cdef lm_cur *c = <lm_cur *>cur
    if c.prev != NULL:
        c.prev.next = c.next
    else:
        c.txn.cursors = c.next
    if c.next != NULL:
        c.next.prev = c.prev
    mdb_cursor_close(c.cursor)
    free(c)


cdef int step(lm_cur *c, MDB_val *key, MDB_cursor_op op, kv_slice *k, kv_slice *v) noexcept nogil:
    cdef MDB_val val
    cdef int rc = mdb_cursor_get(c.cursor, key, &val, op)
    if rc == MDB_NOTFOUND:
        c.state = CUR_END
        return ST_NOTFOUND
    if rc:
        return fail_txn(c.txn, rc, b"cursor")
    c.state = CUR_AT
    from_val(key[0], k)
    from_val(val, v)
    return ST_OK


cdef int lm_cursor_first(void *cur, kv_slice *k, kv_slice *v) noexcept nogil:
    cdef MDB_val key
    return step(<lm_cur *>cur, &key, MDB_FIRST, k, v)


cdef int lm_cursor_last(void *cur, kv_slice *k, kv_slice *v) noexcept nogil:
    cdef MDB_val key
    return step(<lm_cur *>cur, &key, MDB_LAST, k, v)


cdef int lm_cursor_seek(void *cur, kv_slice key, kv_slice *k, kv_slice *v) noexcept nogil:
    cdef MDB_val at = to_val(key)
    if key.n == 0:
        return lm_cursor_first(cur, k, v)
    return step(<lm_cur *>cur, &at, MDB_SET_RANGE, k, v)


cdef int lm_cursor_next(void *cur, kv_slice *k, kv_slice *v) noexcept nogil:
    cdef MDB_val key
    if (<lm_cur *>cur).state == CUR_END:
        return ST_NOTFOUND
    return step(<lm_cur *>cur, &key, MDB_NEXT, k, v)


cdef int lm_cursor_prev(void *cur, kv_slice *k, kv_slice *v) noexcept nogil:
    cdef MDB_val key
    if (<lm_cur *>cur).state == CUR_END:
        return ST_NOTFOUND
    if (<lm_cur *>cur).state == CUR_FRESH:
        return lm_cursor_last(cur, k, v)
    return step(<lm_cur *>cur, &key, MDB_PREV, k, v)


# ---- sizes -------------------------------------------------------------------------------------

cdef uint64_t lm_used_bytes(void *txn) noexcept nogil:
    cdef lm_txn *t = <lm_txn *>txn
    cdef MDB_stat st
    cdef uint64_t pages = 0
    cdef int i
    for i in range(TREE_COUNT):
        if mdb_stat(t.txn, t.env.dbi[i], &st) == 0:
            pages += st.ms_branch_pages + st.ms_leaf_pages + st.ms_overflow_pages
    return pages * t.env.page_bytes


cdef uint64_t lm_entries(void *txn, int tree) noexcept nogil:
    cdef lm_txn *t = <lm_txn *>txn
    cdef MDB_stat st
    if mdb_stat(t.txn, t.env.dbi[tree], &st):
        return 0
    return st.ms_entries


# ---- the objects -------------------------------------------------------------------------------

cdef class LmdbStore(Store):
    """One environment in directory `path` (data.mdb, lock.mdb), mode 0600.

    map_bytes: address space to reserve; the file grows only as pages are written.
    create: make the trees if the environment is empty (one commit, transaction 1).
    Raises StoreError, or CorruptionError when the file is no map of ours.
    """

    def __cinit__(
        self,
        path,
        size_t map_bytes,
        bint readonly=False,
        unsigned int max_readers=510,
        bint writemap=False,
        bint readahead=True,
        bint create=True,
    ):
        cdef unsigned int flags = MDB_NOTLS | MDB_NOMEMINIT
        self.path = os.fspath(path)
        self.readonly = readonly
        self.writemap = writemap
        real_path = os.path.realpath(self.path)
        if real_path in _open_maps:
            raise StoreError(f"{self.path}: this process has the map open already")
        self.lm = <lm_env *>calloc(1, sizeof(lm_env))
        if self.lm == NULL:
            raise MemoryError
        _open_maps.add(real_path)
        self.real_path = real_path
        pthread_mutex_init(&self.lm.lock, NULL)
        self.check(mdb_env_create(&self.lm.env), "create environment")
        self.check(mdb_env_set_maxdbs(self.lm.env, TREE_COUNT), "set trees")
        self.check(mdb_env_set_maxreaders(self.lm.env, max_readers), "set readers")
        self.check(mdb_env_set_mapsize(self.lm.env, map_bytes), "set map size")
        flags |= MDB_RDONLY if readonly else MDB_NOSYNC
        if writemap:
            flags |= MDB_WRITEMAP
        if not readahead:
            flags |= MDB_NORDAHEAD
        name = os.fsencode(self.path)
        self.check(mdb_env_open(self.lm.env, name, flags, 0o600), "open")
        self.check(mdb_env_get_fd(self.lm.env, &self.lm.fd), "fd")
        self.open_trees(create and not readonly)
        self.fill_table()
        self.find_map()
        if writemap and not readonly:
            self.lm.allocated = 1
            if make_room(self.lm, <uint64_t>self.info()["last_page"] * self.lm.page_bytes) != ST_OK:
                raise StoreError(f"{self.path}: {self.lm.error.decode()}")

    def open_trees(self, bint create):
        """Gets the trees' handles without writing; creates them only in an empty environment."""
        cdef MDB_txn *txn
        cdef MDB_stat stat
        cdef int i
        cdef int rc = 0
        cdef unsigned int flags = MDB_RDONLY
        self.check(mdb_env_stat(self.lm.env, &stat), "stat")
        self.lm.page_bytes = stat.ms_psize
        if create and stat.ms_entries == 0:
            flags = 0
        self.check(mdb_txn_begin(self.lm.env, NULL, flags, &txn), "begin")
        for i in range(TREE_COUNT):
            rc = mdb_dbi_open(txn, TREE_NAMES[i], 0 if flags else MDB_CREATE, &self.lm.dbi[i])
            if rc:
                mdb_txn_abort(txn)
                if rc == MDB_NOTFOUND:
                    raise CorruptionError(f"the map has no tree {TREE_NAMES[i]!r}", self.path)
                self.check(rc, "open tree")
        self.check(mdb_txn_commit(txn), "open trees")

    cdef int fill_table(self) except -1:
        memset(&self.ops, 0, sizeof(self.ops))
        self.ops.env = self.lm
        self.ops.begin_write = lm_begin_write
        self.ops.commit = lm_commit
        self.ops.abort = lm_abort
        self.ops.begin_read = lm_begin_read
        self.ops.end_read = lm_end_read
        self.ops.get = lm_get
        self.ops.put = lm_put
        self.ops.put_new = lm_put_new
        self.ops.put_over = lm_put_over
        self.ops.append = lm_append
        self.ops.delete = lm_delete
        self.ops.cursor_open = lm_cursor_open
        self.ops.cursor_close = lm_cursor_close
        self.ops.cursor_seek = lm_cursor_seek
        self.ops.cursor_first = lm_cursor_first
        self.ops.cursor_last = lm_cursor_last
        self.ops.cursor_next = lm_cursor_next
        self.ops.cursor_prev = lm_cursor_prev
        self.ops.used_bytes = lm_used_bytes
        self.ops.entries = lm_entries
        self.ops.last_error = lm_last_error
        return 0

    cdef int need(self) except -1:
        if self.lm == NULL or self.lm.env == NULL:
            raise StoreError(f"{self.path}: the store is closed")
        return 0

    cdef int check(self, int rc, str what) except -1:
        if rc == 0:
            return 0
        text = (mdb_strerror(rc) if rc < 0 else strerror(rc)).decode("utf-8", "replace")
        if rc in (LM_PAGE_NOTFOUND, LM_CORRUPTED, LM_PANIC, LM_VERSION_MISMATCH, LM_INVALID):
            raise CorruptionError(f"lmdb: {what}: {text}", self.path)
        raise StoreError(f"{self.path}: lmdb: {what}: {text}")

    # -- transactions

    def begin_write(self):
        """A WriteTxn. Blocking: waits for another process's write transaction, if there is one."""
        self.need()
        if self.readonly:
            raise StoreError(f"{self.path}: opened read-only")
        return WriteTxn(self)

    def begin_read(self):
        """A ReadTxn on the last committed state."""
        self.need()
        return ReadTxn(self)

    def pin(self):
        """A Pin on the last committed state: none of its pages is reused while it is held."""
        self.need()
        return Pin(self)

    # -- state

    @property
    def page_bytes(self):
        return self.lm.page_bytes

    @property
    def fd(self):
        """The data file's descriptor, owned by LMDB."""
        self.need()
        return self.lm.fd

    @property
    def dirtied_bytes(self):
        """Bytes of pages written since open, estimated from above; only differences count."""
        return self.lm.dirtied

    @property
    def map_full(self):
        """A transaction failed for lack of map; grow() clears it."""
        return bool(self.lm.map_full)

    @property
    def disk_full(self):
        """The last allocation found no room on the disk (WRITEMAP only)."""
        return bool(self.lm.disk_full)

    @property
    def latched(self):
        """A commit failed: nothing begins here any more."""
        return bool(self.lm.latched)

    def latch(self, str text):
        """Ends the use of this environment, with the reason every later begin will give."""
        cdef bytes b = text.encode()
        snprintf(self.lm.error, sizeof(self.lm.error), b"%s", <const char *>b)
        self.lm.latched = True

    def info(self):
        """{'map_bytes', 'last_page', 'last_txn', 'readers', 'reads'}: see lmdb.h."""
        cdef MDB_envinfo info
        self.need()
        self.check(mdb_env_info(self.lm.env, &info), "info")
        return {
            "map_bytes": info.me_mapsize,
            "last_page": info.me_last_pgno,
            "last_txn": info.me_last_txnid,
            "readers": info.me_numreaders,
            "reads": self.lm.active_reads,
        }

    def meta_page(self, size_t txn_id):
        """The meta page that transaction txn_id wrote, verbatim; good until txn_id + 2 commits."""
        page = os.pread(self.fd, self.lm.page_bytes, (txn_id & 1) * self.lm.page_bytes)
        if len(page) != self.lm.page_bytes:
            raise CorruptionError("short meta page", self.path)
        return page

    # -- disk

    def sync(self):
        """Durability: every page committed before the call. Blocking: without the GIL.

        On the descriptor, not by mdb_env_sync: with WRITEMAP that is an msync of the map's
        address, which grow() may move meanwhile. The kernel has one page cache for both.
        """
        cdef int rc = 0
        self.need()
        with nogil:
            if fdatasync(self.lm.fd) != 0:
                rc = errno
        self.check(rc, "sync")

    def start_writeback(self):
        """Asks the kernel to begin writing what is dirty, so that a later sync is short."""
        self.need()
        with nogil:
            sync_file_range(self.lm.fd, 0, 0, SYNC_FILE_RANGE_WRITE)

    def find_map(self):
        """Notes where the map lies, for release(); LMDB tells it only for fixed maps."""
        cdef size_t begin
        path = os.path.join(self.real_path, "data.mdb")
        self.lm.address = NULL
        if self.readonly:           # another process may grow it, and LMDB then moves it
            return
        with open("/proc/self/maps") as lines:
            for line in lines:
                words = line.rstrip("\n").split(maxsplit=5)
                if len(words) == 6 and words[5] == path:
                    begin, end = (int(word, 16) for word in words[0].split("-"))
                    self.lm.address = <char *>begin
                    self.lm.address_bytes = end - begin
                    return

    def release(self):
        """Lets go of the map's pages: the page cache keeps them, this process no longer counts
        them as its own, and the next reading of one costs a minor fault. Blocking: without the
        GIL, and readers that begin for a slice of it."""
        cdef size_t at = 0
        cdef size_t end
        self.need()
        end = <size_t>(self.info()["last_page"] + 1) * self.lm.page_bytes
        with nogil:
            while at < end:
                pthread_mutex_lock(&self.lm.lock)
                if self.lm.address == NULL or at >= self.lm.address_bytes:
                    end = 0
                elif end - at > RELEASE_PIECE_BYTES:
                    madvise(self.lm.address + at, RELEASE_PIECE_BYTES, MADV_DONTNEED)
                else:
                    madvise(self.lm.address + at, end - at, MADV_DONTNEED)
                pthread_mutex_unlock(&self.lm.lock)
                at += RELEASE_PIECE_BYTES

    def reader_check(self):
        """Frees the reader slots of dead processes; returns how many there were."""
        cdef int dead = 0
        self.need()
        self.check(mdb_reader_check(self.lm.env, &dead), "reader check")
        return dead

    def grow(self, size_t map_bytes):
        """Enlarges the map; fails while a transaction or copy of this process is active."""
        cdef int rc = 0
        cdef bint busy
        self.need()
        pthread_mutex_lock(&self.lm.lock)
        busy = self.lm.active_reads > 0 or self.lm.copies > 0 or self.lm.writing
        if not busy:
            rc = mdb_env_set_mapsize(self.lm.env, map_bytes)
            self.lm.address = NULL
            if rc == 0:
                self.lm.map_full = False
                self.find_map()
        pthread_mutex_unlock(&self.lm.lock)
        if busy:
            raise StoreError(f"{self.path}: cannot grow the map while transactions are active")
        self.check(rc, "grow")

    def copy_to(self, int fd, bint compact=True):
        """Writes a copy of the last committed state to fd (a pipe will do).

        Blocking: without the GIL, until all is written. Pins its snapshot meanwhile.
        """
        cdef int rc
        self.need()
        pthread_mutex_lock(&self.lm.lock)
        self.lm.copies += 1
        pthread_mutex_unlock(&self.lm.lock)
        with nogil:
            rc = mdb_env_copyfd2(self.lm.env, fd, MDB_CP_COMPACT if compact else 0)
            pthread_mutex_lock(&self.lm.lock)
            self.lm.copies -= 1
            pthread_mutex_unlock(&self.lm.lock)
        self.check(rc, "copy")

    def close(self):
        """Closes the environment; every transaction and pin must have ended."""
        if self.lm == NULL or self.lm.env == NULL:
            return
        if self.lm.active_reads or self.lm.writing or self.lm.copies:
            raise StoreError(f"{self.path}: cannot close while transactions are active")
        self.dispose()

    cdef int dispose(self) except -1:
        cdef lm_txn *t = self.lm.idle
        cdef lm_txn *nx
        while t != NULL:
            nx = t.next
            mdb_txn_abort(t.txn)
            free(t)
            t = nx
        self.lm.idle = NULL
        if self.lm.env != NULL:
            with nogil:             # unmaps: tens of milliseconds for a large map
                mdb_env_close(self.lm.env)
            self.lm.env = NULL
        _open_maps.discard(self.real_path)
        self.lm.latched = True
        snprintf(self.lm.error, sizeof(self.lm.error), b"lmdb: the store is closed")
        return 0

    def __dealloc__(self):
        if self.lm != NULL:
            self.dispose()
            pthread_mutex_destroy(&self.lm.lock)
            free(self.lm)
            self.lm = NULL


cdef class Pin:
    """A read transaction that only keeps its snapshot's pages from being reused."""

    def __cinit__(self, LmdbStore store not None):
        store.need()
        self.store = store
        store.check(mdb_txn_begin(store.lm.env, NULL, MDB_RDONLY, &self.txn), "pin")

    @property
    def txn_id(self):
        """LMDB's number of the transaction it shows."""
        if self.txn == NULL:
            raise StoreError("pin is closed")
        return mdb_txn_id(self.txn)

    def get(self, int tree, bytes key not None):
        """A value of the pinned state, or None."""
        cdef MDB_val k
        cdef MDB_val v
        cdef int rc
        if self.txn == NULL:
            raise StoreError("pin is closed")
        k.mv_size = len(key)
        k.mv_data = <char *>key
        rc = mdb_get(self.txn, self.store.lm.dbi[tree], &k, &v)
        if rc == MDB_NOTFOUND:
            return None
        self.store.check(rc, "get")
        return (<char *>v.mv_data)[:v.mv_size]

    def close(self):
        if self.txn != NULL and self.store.lm.env != NULL:
            mdb_txn_abort(self.txn)
        self.txn = NULL

    def __dealloc__(self):
        if self.txn != NULL and self.store is not None and self.store.lm.env != NULL:
            mdb_txn_abort(self.txn)


def engine_version():
    """The linked liblmdb's version text."""
    return mdb_version(NULL, NULL, NULL).decode()
