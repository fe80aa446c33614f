"""Declarations of lmdbstore.pyx: the part of liblmdb's API that is used, and LmdbStore."""

from libc.stdint cimport uint64_t

from kvnode._core.store cimport TREE_COUNT, Store

cdef extern from "lmdb.h" nogil:
    ctypedef struct MDB_env:
        pass
    ctypedef struct MDB_txn:
        pass
    ctypedef struct MDB_cursor:
        pass
    ctypedef unsigned int MDB_dbi
    ctypedef struct MDB_val:
        size_t mv_size
        void *mv_data
    ctypedef struct MDB_stat:
        unsigned int ms_psize
        unsigned int ms_depth
        size_t ms_branch_pages
        size_t ms_leaf_pages
        size_t ms_overflow_pages
        size_t ms_entries
    ctypedef struct MDB_envinfo:
        void *me_mapaddr
        size_t me_mapsize
        size_t me_last_pgno
        size_t me_last_txnid
        unsigned int me_maxreaders
        unsigned int me_numreaders
    ctypedef enum MDB_cursor_op:
        MDB_FIRST
        MDB_LAST
        MDB_NEXT
        MDB_PREV
        MDB_SET_RANGE

    enum:
        MDB_NOSYNC
        MDB_RDONLY
        MDB_WRITEMAP
        MDB_NOTLS
        MDB_NORDAHEAD
        MDB_NOMEMINIT
        MDB_CREATE
        MDB_NOOVERWRITE
        MDB_CURRENT
        MDB_RESERVE
        MDB_APPEND
        MDB_CP_COMPACT
        MDB_KEYEXIST
        MDB_NOTFOUND
        MDB_MAP_FULL
        MDB_MAP_RESIZED

    const char *mdb_strerror(int err) noexcept
    const char *mdb_version(int *major, int *minor, int *patch) noexcept
    int mdb_env_create(MDB_env **env) noexcept
    int mdb_env_open(MDB_env *env, const char *path, unsigned int flags, unsigned int mode) noexcept
    void mdb_env_close(MDB_env *env) noexcept
    int mdb_env_set_mapsize(MDB_env *env, size_t size) noexcept
    int mdb_env_set_maxreaders(MDB_env *env, unsigned int readers) noexcept
    int mdb_env_set_maxdbs(MDB_env *env, MDB_dbi dbs) noexcept
    int mdb_env_stat(MDB_env *env, MDB_stat *stat) noexcept
    int mdb_env_info(MDB_env *env, MDB_envinfo *info) noexcept
    int mdb_env_get_fd(MDB_env *env, int *fd) noexcept
    int mdb_env_copyfd2(MDB_env *env, int fd, unsigned int flags) noexcept
    int mdb_txn_begin(MDB_env *env, MDB_txn *parent, unsigned int flags, MDB_txn **txn) noexcept
    size_t mdb_txn_id(MDB_txn *txn) noexcept
    int mdb_txn_commit(MDB_txn *txn) noexcept
    void mdb_txn_abort(MDB_txn *txn) noexcept
    void mdb_txn_reset(MDB_txn *txn) noexcept
    int mdb_txn_renew(MDB_txn *txn) noexcept
    int mdb_dbi_open(MDB_txn *txn, const char *name, unsigned int flags, MDB_dbi *dbi) noexcept
    int mdb_stat(MDB_txn *txn, MDB_dbi dbi, MDB_stat *stat) noexcept
    int mdb_get(MDB_txn *txn, MDB_dbi dbi, MDB_val *key, MDB_val *data) noexcept
    int mdb_del(MDB_txn *txn, MDB_dbi dbi, MDB_val *key, MDB_val *data) noexcept
    int mdb_cursor_open(MDB_txn *txn, MDB_dbi dbi, MDB_cursor **cursor) noexcept
    void mdb_cursor_close(MDB_cursor *cursor) noexcept
    int mdb_cursor_get(
        MDB_cursor *cursor, MDB_val *key, MDB_val *data, MDB_cursor_op op
    ) noexcept
    int mdb_cursor_put(
        MDB_cursor *cursor, MDB_val *key, MDB_val *data, unsigned int flags
    ) noexcept
    int mdb_reader_check(MDB_env *env, int *dead) noexcept

cdef extern from "<pthread.h>" nogil:
    ctypedef struct pthread_mutex_t:
        pass
    int pthread_mutex_init(pthread_mutex_t *m, const void *attr) noexcept
    int pthread_mutex_lock(pthread_mutex_t *m) noexcept
    int pthread_mutex_unlock(pthread_mutex_t *m) noexcept
    int pthread_mutex_destroy(pthread_mutex_t *m) noexcept

ctypedef struct lm_cur:
    lm_txn *txn             # its transaction, and its place in that one's list of open cursors
    lm_cur *next
    lm_cur *prev
    MDB_cursor *cursor
    int state

ctypedef struct lm_txn:
    lm_env *env
    MDB_txn *txn
    lm_txn *next
    lm_cur *cursors
    bint writes
    bint failed             # an operation failed: commit aborts
    MDB_cursor *write_cursor[TREE_COUNT]
    bint found[TREE_COUNT]  # put_new found a value, put_over may follow
    uint64_t touched[TREE_COUNT]    # writes, each of which dirties at most one leaf
    uint64_t reserved       # bytes appended, and of values in pages of their own
    uint64_t base           # file bytes in use when it began
    unsigned int ticks      # writes since the room was last looked at

ctypedef struct lm_env:
    MDB_env *env
    MDB_dbi dbi[TREE_COUNT]
    unsigned int page_bytes
    pthread_mutex_t lock
    lm_txn *idle
    int active_reads
    int copies
    bint writing
    bint latched
    bint map_full
    bint disk_full
    int fd
    uint64_t allocated      # WRITEMAP: bytes of the file that have blocks; 0: not managed
    uint64_t dirtied
    char *address           # of the map, NULL: not known
    size_t address_bytes
    char error[240]


cdef class LmdbStore(Store):
    cdef lm_env *lm
    cdef readonly object path
    cdef readonly bint readonly
    cdef readonly bint writemap
    cdef str real_path
    cdef int need(self) except -1
    cdef int check(self, int rc, str what) except -1
    cdef int fill_table(self) except -1
    cdef int dispose(self) except -1


cdef class Pin:
    cdef LmdbStore store
    cdef MDB_txn *txn
