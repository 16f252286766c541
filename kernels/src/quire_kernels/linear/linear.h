/* What the ways to multiply share: the arguments, the weight's panels, and how sums are written. */

#ifndef QUIRE_LINEAR_H
#define QUIRE_LINEAR_H

#include "vector.h"

typedef struct {
    const uint16_t *x;      /* [rows, inputs], row_stride elements from row to row */
    const uint16_t *weight; /* [panels, steps, 2, 16, 16, 2], filled up with 0 */
    const uint16_t *bias;   /* [outputs] or null */
    const uint16_t *residual; /* like `out`, added to it; or null */
    uint16_t *out;          /* [rows, outputs], or [rows, outputs / 2] */
    int64_t rows, inputs, outputs, row_stride;
    int32_t is_gated; /* what is written is silu of the first half of the outputs times the second; both whole panels */
    int32_t threads, with_dots, with_amx; /* neither: float32 products, which every CPU has */
    int32_t streams_out; /* set here: write past the caches */
} Linear;

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

/* Panels of what is written; a gate's values come from the panel that is as far from the middle as its own from 0. */
INLINE int64_t panels_of(const Linear *p) { return p->is_gated ? p->outputs / (2 * PANEL) : quotient_up(p->outputs, PANEL); }

typedef struct {
    vec low, high;
} Sums; /* a panel's, of one row */

INLINE vec silu(vec x) { return x * reciprocal(DTYPE_BFLOAT16, 1.0f + exponential(-x)); }

#ifdef __AVX512BF16__

INLINE __m512i round_sums(const Linear *p, int64_t panel, Sums s) {
    int64_t first = panel * PANEL;
    if (p->bias) {
        s.low += load_some(DTYPE_BFLOAT16, p->bias, first, p->outputs);
        if (p->outputs - first > LANES) s.high += load_some(DTYPE_BFLOAT16, p->bias, first + LANES, p->outputs);
    }
    return (__m512i)_mm512_cvtne2ps_pbh((__m512)s.high, (__m512)s.low);
}

INLINE Sums widen_both(__m512i x) {
    return (Sums){widen((vech)_mm512_castsi512_si256(x)), widen((vech)_mm512_extracti64x4_epi64(x, 1))};
}

INLINE __m512i both_of(vec low, vec high) { return (__m512i)_mm512_cvtne2ps_pbh((__m512)high, (__m512)low); }

INLINE void write_line(const Linear *p, uint16_t *to, int64_t left, __m512i both) {
    if (left < PANEL) _mm512_mask_storeu_epi16(to, (1u << left) - 1, both);
    else if (p->streams_out) _mm512_stream_si512((__m512i *)to, both);
    else _mm512_storeu_si512(to, both);
}

INLINE void write_sums(const Linear *p, int64_t row, int64_t panel, Sums s) {
    int64_t first = panel * PANEL, left = p->outputs - first, at = row * p->outputs + first;
    __m512i both = round_sums(p, panel, s);
    if (p->residual) {
        __mmask32 mask = left < PANEL ? (1u << left) - 1 : 0xffffffffu;
        Sums x = widen_both(both), y = widen_both(_mm512_maskz_loadu_epi16(mask, p->residual + at));
        both = both_of(x.low + y.low, x.high + y.high);
    }
    write_line(p, p->out + at, left, both);
}

INLINE void write_gated(const Linear *p, int64_t row, int64_t panel, Sums gates, Sums values) {
    Sums gate = widen_both(round_sums(p, panel, gates)), x = widen_both(round_sums(p, panels_of(p) + panel, values));
    Sums active = widen_both(both_of(silu(gate.low), silu(gate.high)));
    uint16_t *to = p->out + row * (p->outputs / 2) + panel * PANEL;
    write_line(p, to, PANEL, both_of(active.low * x.low, active.high * x.high));
}

#endif
#endif
