"""Declarations of crc32c.h. Every extension that uses it calls kv_crc_init() at import."""

from libc.stdint cimport uint32_t

cdef extern from "crc32c.h" nogil:
    void kv_crc_init() noexcept
    uint32_t kv_crc32c(uint32_t crc, const void *p, size_t n) noexcept
    uint32_t kv_crc32c_table(uint32_t c, const unsigned char *p, size_t n) noexcept
    int kv_crc_hw
