"""CRC32C for Python callers: the log's tools and the tests.

`crc32c(data, crc=0)` continues a finished CRC. The table twin is in tests/oracle/crc32c.py.
"""

from kvnode._core.crc cimport kv_crc_hw, kv_crc_init, kv_crc32c

kv_crc_init()

HARDWARE = bool(kv_crc_hw)


def crc32c(const unsigned char[::1] data not None, unsigned int crc=0):
    """The CRC32C of `data`, continued from `crc` (the CRC of what came before)."""
    cdef size_t n = data.shape[0]
    if n == 0:
        return crc
    return kv_crc32c(crc, &data[0], n)
