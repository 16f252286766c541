/* Products of 32 rows and 32 columns of bfloat16, and transposition. */

#define TILE 512 /* elements of 16 rows with 32 inputs each, or of 16 pairs of inputs with 16 columns each */

#if defined(QUIRE_AMX) && defined(__AMX_BF16__)

static void begin_products(int with_amx) {
    amx_config config = {.palette = 1};
    for (int i = 0; i < 8; i++) config.rows[i] = 16, config.row_bytes[i] = 64;
    __asm__ volatile("" : : "r"(&config) : "memory"); /* GCC 12 does not know that all of it is read */
    if (with_amx) _tile_loadconfig(&config);
}

static void end_products(int with_amx) {
    if (with_amx) _tile_release();
}

INLINE void multiply_tiles(const uint16_t *rows, int64_t next_rows, const uint16_t *columns, int64_t steps, float *sums,
                           const int has_sums) {
    if (has_sums) {
        _tile_loadd(0, sums, 128);
        _tile_loadd(1, sums + 16, 128);
        _tile_loadd(2, sums + 512, 128);
        _tile_loadd(3, sums + 528, 128);
    } else {
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
    }
    for (int64_t step = 0; step < steps; step++, rows += TILE, columns += 2 * TILE) {
        _tile_loadd(4, rows, 64);
        _tile_loadd(6, columns, 64);
        _tile_dpbf16ps(0, 4, 6);
        _tile_loadd(7, columns + TILE, 64);
        _tile_dpbf16ps(1, 4, 7);
        _tile_loadd(5, rows + next_rows, 64);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
    }
    _tile_stored(0, sums, 128);
    _tile_stored(1, sums + 16, 128);
    _tile_stored(2, sums + 512, 128);
    _tile_stored(3, sums + 528, 128);
}

#else

static void begin_products(int with_amx) {}

static void end_products(int with_amx) {}

INLINE void multiply_tiles(const uint16_t *rows, int64_t next_rows, const uint16_t *columns, int64_t steps, float *sums,
                           const int has_sums) {}

#endif

/* The same by VDPBF16PS, 16 rows and 16 columns at a time. */
static void multiply_dots(const uint16_t *rows, int64_t next_rows, const uint16_t *columns, int64_t steps, float *sums,
                          int has_sums) {
    for (int part = 0; part < 4; part++) {
        const uint16_t *a = rows + part / 2 * next_rows, *b = columns + part % 2 * TILE;
        float *to = sums + part / 2 * 512 + part % 2 * 16;
        __m512 c[16];
        for (int i = 0; i < 16; i++) c[i] = has_sums ? _mm512_load_ps(to + 32 * i) : _mm512_setzero_ps();
        for (int64_t step = 0; step < steps; step++, a += TILE, b += 2 * TILE)
            for (int pair = 0; pair < 16; pair++) {
                __m512bh column = (__m512bh)_mm512_load_si512(b + 32 * pair);
#pragma GCC unroll 16
                for (int i = 0; i < 16; i++) {
                    int32_t both;
                    memcpy(&both, a + 32 * i + 2 * pair, sizeof both);
                    c[i] = _mm512_dpbf16_ps(c[i], (__m512bh)_mm512_set1_epi32(both), column);
                }
            }
        for (int i = 0; i < 16; i++) _mm512_store_ps(to + 32 * i, c[i]);
    }
}

/* sums [32, 32] = rows times columns, added to what is there if `has_sums`.
   rows: tiles [steps, 16, 32] of the first 16, `next_rows` elements later of the others; columns: [steps, 2, 16, 16, 2]. */
INLINE void multiply(int with_amx, const uint16_t *rows, int64_t next_rows, const uint16_t *columns, int64_t steps,
                     float *sums, const int has_sums) {
    if (with_amx) multiply_tiles(rows, next_rows, columns, steps, sums, has_sums);
    else multiply_dots(rows, next_rows, columns, steps, sums, has_sums);
}

/* 16 rows of 16 elements of 4 bytes. */
INLINE void transpose(__m512i rows[16]) {
    __m512i some[16];
#pragma GCC unroll 8
    for (int i = 0; i < 16; i += 2) {
        some[i] = _mm512_unpacklo_epi32(rows[i], rows[i + 1]);
        some[i + 1] = _mm512_unpackhi_epi32(rows[i], rows[i + 1]);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 16; i += 4) {
        rows[i] = _mm512_unpacklo_epi64(some[i], some[i + 2]);
        rows[i + 1] = _mm512_unpackhi_epi64(some[i], some[i + 2]);
        rows[i + 2] = _mm512_unpacklo_epi64(some[i + 1], some[i + 3]);
        rows[i + 3] = _mm512_unpackhi_epi64(some[i + 1], some[i + 3]);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
        __m512i a = _mm512_shuffle_i32x4(rows[i], rows[i + 4], 0x88), b = _mm512_shuffle_i32x4(rows[i], rows[i + 4], 0xdd);
        __m512i c = _mm512_shuffle_i32x4(rows[i + 8], rows[i + 12], 0x88);
        __m512i d = _mm512_shuffle_i32x4(rows[i + 8], rows[i + 12], 0xdd);
        some[i] = _mm512_shuffle_i32x4(a, c, 0x88);
        some[i + 8] = _mm512_shuffle_i32x4(a, c, 0xdd);
        some[i + 4] = _mm512_shuffle_i32x4(b, d, 0x88);
        some[i + 12] = _mm512_shuffle_i32x4(b, d, 0xdd);
    }
#pragma GCC unroll 16
    for (int i = 0; i < 16; i++) rows[i] = some[i];
}
