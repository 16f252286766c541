/* Products of rounded inputs and two tiles of weights, by dot products or by AMX; then scaled and written. */

#include "w8a8.h"

#define MAX_VNNI_ROWS 8             /* rows that dot products multiply at a time */
#define CACHE_LINE 64

/* What is asked for on the way: cache lines from `next` to `end`, `lines` at each step. */
typedef struct {
    const char *next, *end;
    int64_t lines;
} Ahead;

INLINE void ask(Ahead *ahead) {
    for (int64_t i = 0; i < ahead->lines && ahead->next < ahead->end; i++, ahead->next += CACHE_LINE)
        __builtin_prefetch(ahead->next, 0, 2);
}

/* Rows of products that are still to be scaled and written. */
typedef struct {
    vec scales[2], biases[2];
    const int32_t (*products)[2 * LANES];
    const float *input_scales;
    const int32_t *offsets;
    char *out;
    int64_t rows, columns, stride;
    int dtype;
} Pending;

/* Two tiles of outputs (or one, the last). */
typedef struct {
    uint8_t tails[2][TILE_BYTES]; /* a last, partial step, filled up */
    Pending results;              /* as far as it is the same for all rows */
    const uint8_t *weights[2];
    char *out;                    /* of row 0 */
    int64_t columns, words;
} Pair;

/* 16 products, scaled; the addition has a rounding of its own, as the reference's. */
INLINE vec scaled(const int32_t *products, int32_t offset, float input_scale, vec scale, vec bias) {
    __m512i exact = _mm512_sub_epi32(_mm512_load_si512(products), _mm512_set1_epi32(offset));
    vec y = (vec)_mm512_cvtepi32_ps(exact) * input_scale * scale;
    return (vec)_mm512_add_round_ps((__m512)y, (__m512)bias, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}

INLINE void store_pair(int dtype, void *to, vec low, vec high, int64_t columns) {
#ifdef __AVX512BF16__
    if (dtype == DTYPE_BFLOAT16) {
        __mmask32 some = columns >= 2 * LANES ? 0xffffffff : (1u << columns) - 1;
        _mm512_mask_storeu_epi16(to, some, (__m512i)_mm512_cvtne2ps_pbh((__m512)high, (__m512)low));
        return;
    }
#endif
    store_some(dtype, to, 0, low, columns);
    if (columns > LANES) store_some(dtype, to, LANES, high, columns);
}

/* Writes the next rows of a block. */
INLINE void write_rows(Pending *block, int64_t rows) {
    if (rows > block->rows) rows = block->rows;
    block->rows -= rows;
    for (; rows > 0; rows--, block->products++, block->input_scales++, block->offsets++, block->out += block->stride) {
        const int32_t *products = *block->products;
        float input_scale = *block->input_scales;
        int32_t offset = *block->offsets;
        vec low = scaled(products, offset, input_scale, block->scales[0], block->biases[0]);
        vec high = scaled(products + LANES, offset, input_scale, block->scales[1], block->biases[1]);
        if (block->dtype == DTYPE_BFLOAT16) store_pair(DTYPE_BFLOAT16, block->out, low, high, block->columns);
        else store_pair(DTYPE_FLOAT32, block->out, low, high, block->columns);
    }
}

/* products = values . q for R rows and C tiles. */
INLINE void multiply_dot(int R, int C, const int8_t *values, int64_t steps, const Pair *pair, Ahead *ahead,
                         int32_t (*products)[2 * LANES]) {
    __m512i sums[MAX_VNNI_ROWS][2];
#pragma GCC unroll 8
    for (int r = 0; r < R; r++)
        for (int c = 0; c < C; c++) sums[r][c] = _mm512_setzero_si512();
    const uint8_t *w0 = pair->weights[0], *w1 = pair->weights[1];
    for (int64_t step = 0; step < steps; step++, values += R * STEP) {
        ask(ahead);
        int64_t words = pair->words - step * WORDS < WORDS ? pair->words - step * WORDS : WORDS;
        for (int64_t word = 0; word < words; word++, w0 += STEP, w1 += STEP) {
            __m512i weights[2] = {_mm512_loadu_si512(w0), C > 1 ? _mm512_loadu_si512(w1) : _mm512_setzero_si512()};
#pragma GCC unroll 8
            for (int r = 0; r < R; r++) {
                int32_t four;
                memcpy(&four, values + r * STEP + word * 4, 4);
                for (int c = 0; c < C; c++)
                    sums[r][c] = _mm512_dpbusd_epi32(sums[r][c], weights[c], _mm512_set1_epi32(four));
            }
        }
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; r++)
        for (int c = 0; c < C; c++) _mm512_store_si512(products[r] + c * LANES, sums[r][c]);
}

INLINE void multiply_dots(int C, int64_t height, const int8_t *values, int64_t steps, const Pair *pair, Ahead *ahead,
                          int32_t (*products)[2 * LANES]) {
    switch (height) {
    case 1: multiply_dot(1, C, values, steps, pair, ahead, products); break;
    case 2: multiply_dot(2, C, values, steps, pair, ahead, products); break;
    case 3: multiply_dot(3, C, values, steps, pair, ahead, products); break;
    case 4: multiply_dot(4, C, values, steps, pair, ahead, products); break;
    case 5: multiply_dot(5, C, values, steps, pair, ahead, products); break;
    case 6: multiply_dot(6, C, values, steps, pair, ahead, products); break;
    case 7: multiply_dot(7, C, values, steps, pair, ahead, products); break;
    default: multiply_dot(8, C, values, steps, pair, ahead, products);
    }
}

#ifdef QUIRE_AMX_INT8

/* Tiles 0 .. 3 are products, 4 and 5 values of two blocks, 6 and 7 weights of two tiles of outputs. */
INLINE void configure_tiles(int64_t height) {
    amx_config config = {.palette = 1};
    for (int i = 0; i < 8; i++) {
        config.row_bytes[i] = STEP;
        config.rows[i] = i < 6 ? height : LANES;
    }
    _tile_loadconfig(&config);
}

INLINE void multiply_step(int R, int C, const int8_t *a0, const int8_t *a1, const uint8_t *b0, const uint8_t *b1) {
    _tile_loadd(6, b0, STEP);
    _tile_loadd(4, a0, STEP);
    _tile_dpbsud(0, 4, 6);
    if (C > 1) {
        _tile_loadd(7, b1, STEP);
        _tile_dpbsud(1, 4, 7);
    }
    if (R > 1) {
        _tile_loadd(5, a1, STEP);
        _tile_dpbsud(2, 5, 6);
        if (C > 1) _tile_dpbsud(3, 5, 7);
    }
}

/* The same for R blocks of rows; the products before are written meanwhile. */
INLINE void multiply_tiles(int R, int C, int64_t height, const int8_t *values, int64_t steps, const Pair *pair,
                           Ahead *ahead, Pending *before, int32_t (*products)[2 * LANES]) {
    int64_t block = height * STEP, whole = pair->words / WORDS, rows = (before->rows + steps - 1) / steps;
    const int8_t *a0 = values, *a1 = values + steps * block;
    const uint8_t *b0 = pair->weights[0], *b1 = pair->weights[1];
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (int64_t step = 0; step < whole; step++, a0 += block, a1 += block, b0 += TILE_BYTES, b1 += TILE_BYTES) {
        ask(ahead);
        multiply_step(R, C, a0, a1, b0, b1);
        write_rows(before, rows);
    }
    if (whole < steps) multiply_step(R, C, a0, a1, pair->tails[0], pair->tails[1]);
    _tile_stored(0, products[0], sizeof *products);
    if (C > 1) _tile_stored(1, products[0] + LANES, sizeof *products);
    if (R > 1) {
        _tile_stored(2, products[height], sizeof *products);
        if (C > 1) _tile_stored(3, products[height] + LANES, sizeof *products);
    }
    __asm__ volatile("" ::: "memory");
}

#endif
