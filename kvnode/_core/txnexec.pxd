"""Transactions: branches decided, checked, executed. Table of contents of txnexec.pyx.

Functions return REC_* of records.pxd. A TxnRun lives as long as the machine: its buffers are kept.
"""

from libc.stdint cimport int64_t

from kvnode._core.buf cimport kv_buf
from kvnode._core.etcdpb cimport TxnReq
from kvnode._core.writer cimport Writer

ctypedef struct TxnRun:
    Writer *w
    kv_buf path               # one byte a transaction, depth first: 1 = success branch
    size_t at                 # how far `path` is consumed
    kv_buf deletes            # DeleteReq pointers met by the check so far
    kv_buf prevs              # prev_kv fields of one delete
    kv_buf scratch            # chunked records
    kv_buf *out               # TxnResponse without its header; NULL: nobody asked
    kv_buf *tail              # the outcome's part after the revision
    bint partial              # the outcome is not the whole answer

cdef void txn_init(TxnRun *t, Writer *w) noexcept nogil
cdef void txn_free(TxnRun *t) noexcept nogil

# Decides all branches against the present state and checks every operation of the taken ones.
# *code: CODE_OK, or why the transaction is refused; nothing is written either way.
cdef int txn_prepare(TxnRun *t, const TxnReq *r, int *code) noexcept nogil
# Executes what txn_prepare decided. The caller ends the request (writer_end).
cdef int txn_run(TxnRun *t, const TxnReq *r, kv_buf *out, kv_buf *tail) noexcept nogil

# Whether any branch holds a put, nested transactions included.
cdef bint txn_has_put(const TxnReq *r) noexcept nogil

# The checks of one put against the state: leases, ignore_value, ignore_lease.
cdef int put_prepare(Writer *w, const void *put_req, int *code) noexcept nogil
