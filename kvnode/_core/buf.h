/* Bounded readers and growable writers over bytes; every read checks its bound first.
 *
 * kv_buf   growable output buffer; a failed allocation latches `err`, later writes do nothing,
 *          and the owner checks `err` once at the end.
 * kv_rd    pointer-and-end reader; a read past the end latches `bad` and yields zero.
 * kv_arena bump allocator for decoded structures; freed or reset as a whole.
 */
#ifndef KV_BUF_H
#define KV_BUF_H
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define KV_LIKELY(x) __builtin_expect(!!(x), 1)
#define KV_UNLIKELY(x) __builtin_expect(!!(x), 0)

typedef struct { const uint8_t *p; size_t n; } kv_slice;

typedef struct { uint8_t *p; size_t n; size_t cap; int err; } kv_buf;

static inline void kv_buf_init(kv_buf *b) { b->p = NULL; b->n = 0; b->cap = 0; b->err = 0; }
static inline void kv_buf_free(kv_buf *b) { free(b->p); kv_buf_init(b); }
static inline void kv_buf_clear(kv_buf *b) { b->n = 0; b->err = 0; }
/* Gives memory back when one large message left the buffer oversized. */
static inline void kv_buf_trim(kv_buf *b, size_t keep) {
  b->n = 0; b->err = 0;
  if (b->cap > keep) { free(b->p); b->p = NULL; b->cap = 0; }
}
static inline int kv_buf_need(kv_buf *b, size_t more) {
  if (KV_LIKELY(b->cap - b->n >= more)) return 1;
  if (b->err) return 0;
  size_t cap = b->cap ? b->cap : 256;
  while (cap - b->n < more) { if (cap > SIZE_MAX / 2) { b->err = 1; return 0; } cap *= 2; }
  uint8_t *p = (uint8_t *)realloc(b->p, cap);
  if (!p) { b->err = 1; return 0; }
  b->p = p; b->cap = cap;
  return 1;
}
/* Reserves n bytes at the end and returns where they are (NULL: out of memory). */
static inline uint8_t *kv_buf_grow(kv_buf *b, size_t n) {
  if (!kv_buf_need(b, n)) return NULL;
  uint8_t *p = b->p + b->n; b->n += n; return p;
}
static inline void kv_put_bytes(kv_buf *b, const void *p, size_t n) {
  uint8_t *d = kv_buf_grow(b, n); if (d && n) memcpy(d, p, n);
}
static inline void kv_put_u8(kv_buf *b, uint8_t v) { uint8_t *d = kv_buf_grow(b, 1); if (d) *d = v; }
/* Fixed-width integers are little-endian on every disk and wire of kvnode; both supported
 * machines (x86-64, arm64) are, so a memcpy is the conversion. */
static inline void kv_put_u16(kv_buf *b, uint16_t v) { kv_put_bytes(b, &v, 2); }
static inline void kv_put_u32(kv_buf *b, uint32_t v) { kv_put_bytes(b, &v, 4); }
static inline void kv_put_u64(kv_buf *b, uint64_t v) { kv_put_bytes(b, &v, 8); }

static inline size_t kv_varint_size(uint64_t v) {
  return (size_t)((63 - __builtin_clzll(v | 1)) / 7 + 1);
}
static inline uint8_t *kv_varint_write(uint8_t *d, uint64_t v) {
  while (v >= 0x80) { *d++ = (uint8_t)(v | 0x80); v >>= 7; }
  *d++ = (uint8_t)v; return d;
}
static inline void kv_put_varint(kv_buf *b, uint64_t v) {
  uint8_t *d; if (!kv_buf_need(b, 10)) return;
  d = b->p + b->n; b->n = (size_t)(kv_varint_write(d, v) - b->p);
}

typedef struct { const uint8_t *p; const uint8_t *end; int bad; } kv_rd;

static inline void kv_rd_init(kv_rd *r, const void *p, size_t n) {
  r->p = (const uint8_t *)p; r->end = r->p + n; r->bad = 0;
}
static inline size_t kv_rd_left(const kv_rd *r) { return (size_t)(r->end - r->p); }
static inline const uint8_t *kv_get_bytes(kv_rd *r, size_t n) {
  if (KV_UNLIKELY(kv_rd_left(r) < n)) { r->bad = 1; r->p = r->end; return NULL; }
  const uint8_t *p = r->p; r->p += n; return p;
}
static inline uint8_t kv_get_u8(kv_rd *r) { const uint8_t *p = kv_get_bytes(r, 1); return p ? *p : 0; }
static inline uint16_t kv_get_u16(kv_rd *r) { uint16_t v = 0; const uint8_t *p = kv_get_bytes(r, 2); if (p) memcpy(&v, p, 2); return v; }
static inline uint32_t kv_get_u32(kv_rd *r) { uint32_t v = 0; const uint8_t *p = kv_get_bytes(r, 4); if (p) memcpy(&v, p, 4); return v; }
static inline uint64_t kv_get_u64(kv_rd *r) { uint64_t v = 0; const uint8_t *p = kv_get_bytes(r, 8); if (p) memcpy(&v, p, 8); return v; }
static inline uint64_t kv_get_varint(kv_rd *r) {
  uint64_t v = 0; int shift = 0;
  while (r->p < r->end) {
    uint8_t c = *r->p++;
    if (shift == 63 && c > 1) break;
    v |= (uint64_t)(c & 0x7f) << shift;
    if (!(c & 0x80)) return v;
    shift += 7;
    if (shift > 63) break;
  }
  r->bad = 1; r->p = r->end; return 0;
}

static inline uint16_t kv_load_u16(const uint8_t *p) { uint16_t v; memcpy(&v, p, 2); return v; }
static inline uint32_t kv_load_u32(const uint8_t *p) { uint32_t v; memcpy(&v, p, 4); return v; }
static inline uint64_t kv_load_u64(const uint8_t *p) { uint64_t v; memcpy(&v, p, 8); return v; }
static inline void kv_store_u16(uint8_t *p, uint16_t v) { memcpy(p, &v, 2); }
static inline void kv_store_u32(uint8_t *p, uint32_t v) { memcpy(p, &v, 4); }
static inline void kv_store_u64(uint8_t *p, uint64_t v) { memcpy(p, &v, 8); }
/* Big-endian, for tree keys whose byte order must be their numeric order. */
static inline void kv_store_be32(uint8_t *p, uint32_t v) { v = __builtin_bswap32(v); memcpy(p, &v, 4); }
static inline void kv_store_be64(uint8_t *p, uint64_t v) { v = __builtin_bswap64(v); memcpy(p, &v, 8); }
static inline uint32_t kv_load_be32(const uint8_t *p) { uint32_t v; memcpy(&v, p, 4); return __builtin_bswap32(v); }
static inline uint64_t kv_load_be64(const uint8_t *p) { uint64_t v; memcpy(&v, p, 8); return __builtin_bswap64(v); }

/* Byte order of whole keys, as memcmp then length. */
static inline int kv_slice_cmp(kv_slice a, kv_slice b) {
  size_t n = a.n < b.n ? a.n : b.n;
  int c = n ? memcmp(a.p, b.p, n) : 0;
  if (c) return c;
  return a.n < b.n ? -1 : a.n > b.n;
}

typedef struct kv_block { struct kv_block *next; size_t cap; size_t used; } kv_block;
typedef struct { kv_block *head; int err; } kv_arena;

static inline void kv_arena_init(kv_arena *a) { a->head = NULL; a->err = 0; }
static inline void *kv_arena_alloc(kv_arena *a, size_t n) {
  n = (n + 15) & ~(size_t)15;
  kv_block *h = a->head;
  if (!h || h->cap - h->used < n) {
    size_t cap = h ? h->cap * 2 : 4096;
    if (cap > (1u << 20)) cap = 1u << 20;
    if (cap < n) cap = n;
    kv_block *nb = (kv_block *)malloc(sizeof(kv_block) + 16 + cap);
    if (!nb) { a->err = 1; return NULL; }
    nb->next = h; nb->cap = cap; nb->used = 0; a->head = nb; h = nb;
  }
  uint8_t *base = (uint8_t *)(((uintptr_t)(h + 1) + 15) & ~(uintptr_t)15);
  void *p = base + h->used; h->used += n; return p;
}
/* Keeps the newest block for reuse, frees the others. */
static inline void kv_arena_reset(kv_arena *a) {
  kv_block *h = a->head;
  if (h) {
    kv_block *b = h->next;
    while (b) { kv_block *nx = b->next; free(b); b = nx; }
    h->next = NULL; h->used = 0;
  }
  a->err = 0;
}
static inline void kv_arena_free(kv_arena *a) {
  kv_block *b = a->head;
  while (b) { kv_block *nx = b->next; free(b); b = nx; }
  a->head = NULL;
}
#endif
