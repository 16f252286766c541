/* Intel AMX: permission to use its tiles, and their configuration. */

#ifndef QUIRE_AMX_H
#define QUIRE_AMX_H

#if defined(__AMX_TILE__) && defined(__linux__)
#define QUIRE_AMX 1

#include <immintrin.h>
#include <stdint.h>
#include <sys/syscall.h>
#include <unistd.h>

/* Whether the kernel lets this process keep tile data; asked at every call, which is cheap and idempotent. */
static inline int amx_is_permitted(void) {
    const long request_permission = 0x1023, tile_data = 18;
    return syscall(SYS_arch_prctl, request_permission, tile_data) == 0;
}

/* The state of this thread's eight tiles: rows and bytes a row of each. */
typedef struct __attribute__((packed, aligned(64))) {
    uint8_t palette, start_row, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
} amx_config;

#endif
#endif
