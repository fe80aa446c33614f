"""Declarations of buf.h: slices, growable buffers, bounded readers, arenas."""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

cdef extern from "buf.h" nogil:
    ctypedef struct kv_slice:
        const uint8_t *p
        size_t n

    ctypedef struct kv_buf:
        uint8_t *p
        size_t n
        size_t cap
        int err

    void kv_buf_init(kv_buf *b) noexcept
    void kv_buf_free(kv_buf *b) noexcept
    void kv_buf_clear(kv_buf *b) noexcept
    void kv_buf_trim(kv_buf *b, size_t keep) noexcept
    int kv_buf_need(kv_buf *b, size_t more) noexcept
    uint8_t *kv_buf_grow(kv_buf *b, size_t n) noexcept
    void kv_put_bytes(kv_buf *b, const void *p, size_t n) noexcept
    void kv_put_u8(kv_buf *b, uint8_t v) noexcept
    void kv_put_u16(kv_buf *b, uint16_t v) noexcept
    void kv_put_u32(kv_buf *b, uint32_t v) noexcept
    void kv_put_u64(kv_buf *b, uint64_t v) noexcept
    void kv_put_varint(kv_buf *b, uint64_t v) noexcept
    size_t kv_varint_size(uint64_t v) noexcept
    uint8_t *kv_varint_write(uint8_t *d, uint64_t v) noexcept

    ctypedef struct kv_rd:
        const uint8_t *p
        const uint8_t *end
        int bad

    void kv_rd_init(kv_rd *r, const void *p, size_t n) noexcept
    size_t kv_rd_left(const kv_rd *r) noexcept
    const uint8_t *kv_get_bytes(kv_rd *r, size_t n) noexcept
    uint8_t kv_get_u8(kv_rd *r) noexcept
    uint16_t kv_get_u16(kv_rd *r) noexcept
    uint32_t kv_get_u32(kv_rd *r) noexcept
    uint64_t kv_get_u64(kv_rd *r) noexcept
    uint64_t kv_get_varint(kv_rd *r) noexcept

    uint16_t kv_load_u16(const uint8_t *p) noexcept
    uint32_t kv_load_u32(const uint8_t *p) noexcept
    uint64_t kv_load_u64(const uint8_t *p) noexcept
    void kv_store_u16(uint8_t *p, uint16_t v) noexcept
    void kv_store_u32(uint8_t *p, uint32_t v) noexcept
    void kv_store_u64(uint8_t *p, uint64_t v) noexcept
    void kv_store_be32(uint8_t *p, uint32_t v) noexcept
    void kv_store_be64(uint8_t *p, uint64_t v) noexcept
    uint32_t kv_load_be32(const uint8_t *p) noexcept
    uint64_t kv_load_be64(const uint8_t *p) noexcept
    int kv_slice_cmp(kv_slice a, kv_slice b) noexcept

    ctypedef struct kv_arena:
        int err

    void kv_arena_init(kv_arena *a) noexcept
    void *kv_arena_alloc(kv_arena *a, size_t n) noexcept
    void kv_arena_reset(kv_arena *a) noexcept
    void kv_arena_free(kv_arena *a) noexcept
