/* What the ways to multiply share: the arguments, the weight's panels, and how sums are written. */

#ifndef QUIRE_LINEAR_H
#define QUIRE_LINEAR_H

#include "vector.h"

typedef struct {
    const uint16_t *x;      /* [rows, inputs], row_stride elements from row to row */
    const uint16_t *weight; /* [panels, steps, 2, 16, 16, 2], filled up with 0 */
    const uint16_t *bias;   /* [outputs] or null */
    uint16_t *out;          /* [rows, outputs] */
    int64_t rows, inputs, outputs, row_stride;
    int32_t threads, with_amx;
    int32_t streams_out; /* set here: write past the caches */
} Linear;

#ifdef __AVX512BF16__

#define STEP 32
#define PANEL 32
#define STEP_ELEMENTS (PANEL * STEP)
#define HALF_ELEMENTS (STEP_ELEMENTS / 2)
#define LINE_ELEMENTS 32
#define AHEAD (4 * STEP_ELEMENTS) /* how far weights that are read in the order in which they lie are asked for */

#define UNROLLED _Pragma("GCC unroll 16")

INLINE int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

INLINE int64_t quotient_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

INLINE int64_t steps_of(const Linear *p) { return quotient_up(p->inputs, STEP); }

INLINE const uint16_t *panel_at(const Linear *p, int64_t panel, int64_t step) {
    return p->weight + (panel * steps_of(p) + step) * STEP_ELEMENTS;
}

/* A panel's sums of one row. */
INLINE void write_sums(const Linear *p, int64_t row, int64_t panel, vec low, vec high) {
    int64_t first = panel * PANEL, left = p->outputs - first;
    if (p->bias) {
        low += load_some(DTYPE_BFLOAT16, p->bias, first, p->outputs);
        if (left > LANES) high += load_some(DTYPE_BFLOAT16, p->bias, first + LANES, p->outputs);
    }
    __m512i both = (__m512i)_mm512_cvtne2ps_pbh((__m512)high, (__m512)low);
    uint16_t *to = p->out + row * p->outputs + first;
    if (left < PANEL) _mm512_mask_storeu_epi16(to, (1u << left) - 1, both);
    else if (p->streams_out) _mm512_stream_si512((__m512i *)to, both);
    else _mm512_storeu_si512(to, both);
}

#endif
#endif
