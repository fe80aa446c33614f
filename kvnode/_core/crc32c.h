/* CRC32C (Castagnoli), reflected polynomial 0x82f63b78, initial and final xor 0xffffffff.
 *
 * kv_crc32c(crc, p, n) continues a finished CRC: kv_crc32c(kv_crc32c(0, a), b) equals the CRC of
 * a followed by b, which is what the log's chain uses. SSE4.2 or ARMv8 CRC instructions where the
 * machine has them (three lanes above 3 KiB would gain on long buffers; records are short), a
 * byte table otherwise.
 */
#ifndef KV_CRC32C_H
#define KV_CRC32C_H
#include <stdint.h>
#include <stddef.h>
#include <string.h>

static uint32_t kv_crc_table[256];
static int kv_crc_ready = 0;
static int kv_crc_hw = 0;

static inline uint32_t kv_crc32c_table(uint32_t c, const uint8_t *p, size_t n) {
  while (n--) c = kv_crc_table[(c ^ *p++) & 0xff] ^ (c >> 8);
  return c;
}

#if defined(__x86_64__)
#include <nmmintrin.h>
__attribute__((target("sse4.2")))
static uint32_t kv_crc32c_run(uint32_t c, const uint8_t *p, size_t n) {
  uint64_t c64 = c, w;
  while (n >= 8) { memcpy(&w, p, 8); c64 = _mm_crc32_u64(c64, w); p += 8; n -= 8; }
  c = (uint32_t)c64;
  while (n--) c = _mm_crc32_u8(c, *p++);
  return c;
}
static inline int kv_crc_probe(void) { return __builtin_cpu_supports("sse4.2"); }
#elif defined(__aarch64__)
#include <arm_acle.h>
#include <sys/auxv.h>
__attribute__((target("+crc")))
static uint32_t kv_crc32c_run(uint32_t c, const uint8_t *p, size_t n) {
  uint64_t w;
  while (n >= 8) { memcpy(&w, p, 8); c = __crc32cd(c, w); p += 8; n -= 8; }
  while (n--) c = __crc32cb(c, *p++);
  return c;
}
static inline int kv_crc_probe(void) { return (getauxval(AT_HWCAP) & (1 << 7)) != 0; }
#else
#error "kvnode supports x86-64 and arm64"
#endif

static inline void kv_crc_init(void) {
  if (kv_crc_ready) return;
  for (uint32_t i = 0; i < 256; i++) {
    uint32_t c = i;
    for (int k = 0; k < 8; k++) c = c & 1 ? (c >> 1) ^ 0x82f63b78u : c >> 1;
    kv_crc_table[i] = c;
  }
  kv_crc_hw = kv_crc_probe();
  kv_crc_ready = 1;
}
static inline uint32_t kv_crc32c(uint32_t crc, const void *p, size_t n) {
  uint32_t c = crc ^ 0xffffffffu;
  if (kv_crc_hw) c = kv_crc32c_run(c, (const uint8_t *)p, n);
  else c = kv_crc32c_table(c, (const uint8_t *)p, n);
  return c ^ 0xffffffffu;
}
#endif
