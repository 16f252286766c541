/* weight_only.h for CPUs that do not multiply bfloat16: products of float32.

   Inputs are widened beforehand, in the order in which words hold them. Each field of 16 words becomes a vector of
   (q - zero), which is exact, for a block of rows whose sums stay in registers until their group's scale applies. */

#ifndef QUIRE_WEIGHT_ONLY_VECTORS_H
#define QUIRE_WEIGHT_ONLY_VECTORS_H

#include "registers.h"
#include "weight_only.h"

#define WIDE_ROWS (MOST_SUMS / (REGISTERS > 1 ? REGISTERS : 2)) /* of a block */
#define WIDE_FLOATS (1 << 16)  /* inputs of so many rows stay in the L2 cache */

/* Where the inputs of a word lie in x; see INPUT_ORDER of quire.ops.tiles. */
static const int8_t FIELD_INPUTS[FIELDS] =
#if BITS == 4
    {0, 2, 4, 6, 1, 3, 5, 7};
#else
    {0, 2, 1, 3};
#endif

/* A float16, widened; not every compiler has the type. */
INLINE float widen_half(uint16_t half) {
    int is_finite = (half & 0x7c00) != 0x7c00;
    uint32_t bits = (uint32_t)(half & 0x7fff) << 13 | (is_finite ? 0 : 0x7f800000);
    float value;
    memcpy(&value, &bits, sizeof value);
    return (half & 0x8000 ? -1.0f : 1.0f) * (is_finite ? value * 0x1p112f : value);
}

INLINE void load_wide_scales(const WeightOnly *p, int64_t at, float scales[LANES]) {
    if (p->scale_dtype != SCALE_FLOAT16) store(DTYPE_FLOAT32, scales, 0, load(p->scale_dtype, p->scales, at));
    else
        for (int i = 0; i < LANES; i++) scales[i] = widen_half(((const uint16_t *)p->scales)[at + i]);
}

INLINE void widen_row(const WeightOnly *p, const uint16_t *x, float *to) {
    for (int64_t at = 0; at < p->inputs; at += FIELDS)
        for (int field = 0; field < FIELDS; field++) {
            int64_t k = at + FIELD_INPUTS[field];
            union {
                uint32_t bits;
                float value;
            } wide = {(uint32_t)x[p->input_order ? p->input_order[k] : k] << 16};
            to[at + field] = wide.value;
        }
}

/* A tile times some rows, from `row` on; `x` is the first one. */
INLINE void multiply_fields(const WeightOnly *p, int64_t tile, const float *x, int64_t row, const int rows) {
    const int chains = 4 * rows * REGISTERS <= ENOUGH_SUMS ? 4 : 2 * rows * REGISTERS <= ENOUGH_SUMS ? 2 : 1;
    int64_t words = p->inputs / FIELDS, group_words = words / p->groups;
    const uint32_t *weight = p->weight + tile * words * LANES;
    reg totals[WIDE_ROWS][REGISTERS] = {};
    for (int64_t group = 0; group < p->groups; group++) {
        int64_t at = (tile * p->groups + group) * LANES;
        float scales[LANES], zeros[LANES];
        load_wide_scales(p, at, scales);
        for (int i = 0; i < LANES; i++) zeros[i] = p->zeros ? p->zeros[at + i] : MIDDLE;
        reg sums[WIDE_ROWS][REGISTERS][4] = {};
        for (int64_t word = 0; word < group_words; word++, weight += LANES, x += FIELDS) {
            __builtin_prefetch(weight + AHEAD * LANES, 0, 3);
            UNROLLED for (int field = 0; field < FIELDS; field++)
                UNROLLED for (int i = 0; i < REGISTERS; i++) {
                    regu bits = (load_integers(weight + i * WIDTH) >> (field * BITS)) & ((1 << BITS) - 1);
                    reg centered = __builtin_convertvector((regi)bits, reg) - load_floats(zeros + i * WIDTH);
                    UNROLLED for (int r = 0; r < rows; r++)
                        sums[r][i][field % chains] += centered * x[r * p->inputs + field];
                }
        }
        UNROLLED for (int r = 0; r < rows; r++)
            UNROLLED for (int i = 0; i < REGISTERS; i++) {
                UNROLLED for (int chain = 1; chain < chains; chain++) sums[r][i][0] += sums[r][i][chain];
                totals[r][i] += sums[r][i][0] * load_floats(scales + i * WIDTH);
            }
    }
    int64_t at = tile * LANES;
    for (int r = 0; r < rows; r++) {
        vec sum = join(totals[r]);
        if (p->bias) sum += load_some(DTYPE_BFLOAT16, p->bias, at, p->outputs);
        store_some(DTYPE_BFLOAT16, p->out + (row + r) * p->outputs, at, sum, p->outputs);
    }
}

#define CASE(rows) case rows: multiply_fields(p, tile, x, row, rows); break

static void multiply_wide_rows(const WeightOnly *p, int64_t tile, const float *x, int64_t row, int64_t rows) {
    switch (rows) {
        CASE(1);
        CASE(2);
        CASE(3);
#if MOST_SUMS > 12 || WIDTH == 8
        CASE(4);
        CASE(5);
        CASE(6);
#endif
#if WIDTH == 16
        CASE(7);
        CASE(8);
        CASE(9);
        CASE(10);
        CASE(11);
        CASE(12);
#endif
    }
}

#undef CASE

/* Called by each thread of a team, which share the widening, then the tiles; 0, or 1 where memory is short. */
static int multiply_by_vectors(const WeightOnly *p) {
    int64_t fitting = WIDE_FLOATS / p->inputs / WIDE_ROWS, size = WIDE_ROWS * (fitting > 1 ? fitting : 1);
    float *wide = team_memory(least(size, p->rows) * p->inputs * (int64_t)sizeof *wide);
    if (!wide) return 1;
    int64_t first, last;
    team_share(quotient_up(p->outputs, LANES), &first, &last);
    for (int64_t chunk = 0; chunk < p->rows; chunk += size) {
        int64_t rows = least(size, p->rows - chunk), blocks = quotient_up(rows, WIDE_ROWS);
#pragma omp for schedule(static)
        for (int64_t row = 0; row < rows; row++) widen_row(p, p->x + (chunk + row) * p->row_stride, wide + row * p->inputs);
        for (int64_t tile = first; tile < last; tile++)
            for (int64_t block = 0; block < blocks; block++) {
                int64_t row = rows * block / blocks, end = rows * (block + 1) / blocks;
                multiply_wide_rows(p, tile, wide + row * p->inputs, chunk + row, end - row);
            }
#pragma omp barrier
    }
    free_team_memory(wide);
    return 0;
}

#endif
