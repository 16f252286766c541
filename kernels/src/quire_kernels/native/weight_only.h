/* A linear layer of bfloat16 rows over integer weights of BITS bits (4 or 8, defined by the includer) in the
   tiles of quire.ops.tiles: y[t, n] = sum over k of x[t, k] * (q[n, k] - zero) * scale + bias[n].

   Integers are exact in bfloat16, so weights become pairs of neighbouring inputs for 16 outputs: the operand
   of VDPBF16PS, and a row of an AMX tile. Sums are float32. A few rows are multiplied here, while the weights
   stream by; more rows in weight_only_blocks.h. */

#ifndef QUIRE_WEIGHT_ONLY_H
#define QUIRE_WEIGHT_ONLY_H

#include "team.h"
#include "vector.h"

typedef struct {
    const uint16_t *x;          /* [rows, inputs], row_stride elements from row to row */
    const uint32_t *weight;     /* [tiles, inputs / FIELDS, 16] */
    const void *scales;         /* [tiles, groups, 16] */
    const uint8_t *zeros;       /* the same shape, or null: the middle */
    const int32_t *input_order; /* [inputs]: the column of x of each input, or null */
    const uint16_t *bias;       /* [outputs] or null */
    uint16_t *out;              /* [rows, outputs] */
    int64_t rows, inputs, outputs, groups, row_stride;
    int32_t scale_dtype, threads, with_dots, with_amx; /* neither: products of float32, see weight_only_vectors.h */
} WeightOnly;

#define FIELDS (32 / BITS)         /* inputs in a word */
#define MIDDLE (1 << (BITS - 1))
#define AHEAD 32                   /* words that are asked for before they are needed */

enum { SCALE_BFLOAT16 = 0, SCALE_FLOAT32 = 1, SCALE_FLOAT16 = 2 };

#define UNROLLED _Pragma("GCC unroll 16")

INLINE int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

INLINE int64_t quotient_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

#ifdef __AVX512BF16__

#define PAIRS (FIELDS / 2)
#define ORIGIN (BITS == 4 ? 8 : 0) /* what streamed weights are counted from: the cheapest to unpack */
#define STREAMED_ROWS 8
#define STREAMED_ROWS_AMX (BITS == 4 ? 2 : 4) /* AMX multiplies more than these faster than VDPBF16PS */
INLINE vec load_scales(const WeightOnly *p, int64_t tile, int64_t group) {
    int64_t at = (tile * p->groups + group) * LANES;
    if (p->scale_dtype == SCALE_FLOAT16)
        return (vec)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)((const uint16_t *)p->scales + at)));
    return load(p->scale_dtype, p->scales, at);
}

INLINE vec load_zeros(const WeightOnly *p, int64_t tile, int64_t group) {
    if (!p->zeros) return splat(MIDDLE);
    const uint8_t *at = p->zeros + (tile * p->groups + group) * LANES;
    return (vec)_mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)at)));
}

INLINE __m512i load_words(const uint32_t *words) { return _mm512_loadu_si512(words); }

INLINE vec dot(vec sum, __m512i a, __m512i b) {
    return (vec)_mm512_dpbf16_ps((__m512)sum, (__m512bh)a, (__m512bh)b);
}

/* Two neighbouring inputs of one row, for all outputs. */
INLINE __m512i broadcast_pair(const void *at) {
    int32_t pair;
    memcpy(&pair, at, sizeof pair);
    return _mm512_set1_epi32(pair);
}

/* Field `field` of 16 words, in float32. */
INLINE vec field_values(__m512i words, int field) {
#if BITS == 4
    const __m512 table = _mm512_setr_ps(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    return (vec)_mm512_permutexvar_ps(_mm512_srli_epi32(words, field * BITS), table);
#else
    const veci bytes = {0, 4, 8, 12, 0, 4, 8, 12, 0, 4, 8, 12, 0, 4, 8, 12};
    veci chosen = (bytes + field) | (int)0x80808000;
    return (vec)_mm512_cvtepi32_ps(_mm512_shuffle_epi8(words, (__m512i)chosen));
#endif
}

/* Two vectors of integers, exact in bfloat16, as pairs. */
INLINE __m512i exact_pairs(vec even, vec odd) {
    return (__m512i)(((vecu)even >> 16) | (vecu)odd);
}

INLINE __m512i rounded_pairs(vec even, vec odd) {
    const __m512i order = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22,
                                           6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
    return _mm512_permutexvar_epi16(order, (__m512i)_mm512_cvtne2ps_pbh((__m512)odd, (__m512)even));
}

#if BITS == 4

/* The bfloat16 of i for i < 16, of i - 32 from there on: of a difference's five low bits. */
static const uint16_t DIFFERENCES[32] __attribute__((aligned(64))) = {
    0x0000, 0x3f80, 0x4000, 0x4040, 0x4080, 0x40a0, 0x40c0, 0x40e0, 0x4100, 0x4110, 0x4120,
    0x4130, 0x4140, 0x4150, 0x4160, 0x4170, 0xc180, 0xc170, 0xc160, 0xc150, 0xc140, 0xc130,
    0xc120, 0xc110, 0xc100, 0xc0e0, 0xc0c0, 0xc0a0, 0xc080, 0xc040, 0xc000, 0xbf80};

/* The bfloat16 of i % 16 - 8: what lies above a nibble need not be masked. */
static const uint16_t FROM_MIDDLE[32] __attribute__((aligned(64))) = {
    0xc100, 0xc0e0, 0xc0c0, 0xc0a0, 0xc080, 0xc040, 0xc000, 0xbf80, 0x0000, 0x3f80, 0x4000,
    0x4040, 0x4080, 0x40a0, 0x40c0, 0x40e0, 0xc100, 0xc0e0, 0xc0c0, 0xc0a0, 0xc080, 0xc040,
    0xc000, 0xbf80, 0x0000, 0x3f80, 0x4000, 0x4040, 0x4080, 0x40a0, 0x40c0, 0x40e0};

/* q - 8 of the words' inputs, by pairs. */
INLINE void unpack_from_origin(__m512i words, __m512i pairs[PAIRS]) {
    const __m512i table = _mm512_load_si512(FROM_MIDDLE);
    UNROLLED for (int i = 0; i < PAIRS; i++)
        pairs[i] = _mm512_permutexvar_epi16(_mm512_srli_epi16(words, 4 * i), table);
}

/* q - zero. */
INLINE void unpack(__m512i words, vec zeros, __m512i pairs[PAIRS]) {
    const __m512i table = _mm512_load_si512(DIFFERENCES), mask = _mm512_set1_epi16(15);
    __m512i integers = _mm512_cvtps_epi32((__m512)zeros);
    __m512i both = _mm512_or_si512(integers, _mm512_slli_epi32(integers, 16));
    UNROLLED for (int i = 0; i < PAIRS; i++) {
        __m512i nibbles = _mm512_and_si512(_mm512_srli_epi16(words, 4 * i), mask);
        pairs[i] = _mm512_permutexvar_epi16(_mm512_sub_epi16(nibbles, both), table);
    }
}

#else

INLINE void unpack(__m512i words, vec zeros, __m512i pairs[PAIRS]) {
    UNROLLED for (int i = 0; i < PAIRS; i++)
        pairs[i] = exact_pairs(field_values(words, i) - zeros, field_values(words, i + PAIRS) - zeros);
}

INLINE void unpack_from_origin(__m512i words, __m512i pairs[PAIRS]) { unpack(words, splat(0), pairs); }

#endif

/* (q - zero) * scale, rounded to bfloat16. */
INLINE void unpack_scaled(__m512i words, vec zeros, vec scales, __m512i pairs[PAIRS]) {
    UNROLLED for (int i = 0; i < PAIRS; i++)
        pairs[i] = rounded_pairs((field_values(words, i) - zeros) * scales,
                                 (field_values(words, i + PAIRS) - zeros) * scales);
}

INLINE void write_outputs(const WeightOnly *p, int64_t row, int64_t tile, vec sums) {
    int64_t at = tile * LANES;
    uint16_t *to = p->out + row * p->outputs + at;
    if (p->bias) sums += load_some(DTYPE_BFLOAT16, p->bias, at, p->outputs);
    vech rounded = (vech)_mm512_cvtneps_pbh((__m512)sums);
    if (p->outputs - at >= LANES) memcpy(to, &rounded, sizeof rounded);
    else memcpy(to, &rounded, (p->outputs - at) * sizeof *to);
}

/* Few rows: [words, rows, FIELDS], so that all of a word's inputs are near each other. */

INLINE int64_t streamed_input_bytes(const WeightOnly *p) {
    return p->rows > 1 || p->input_order ? p->rows * p->inputs * (int64_t)sizeof(uint16_t) : 0;
}

/* How many sums of a group's inputs are needed: they take the zeros, as far as these are not the origin. */
INLINE int64_t streamed_sums(const WeightOnly *p) {
    return p->zeros || ORIGIN != MIDDLE ? p->rows * p->groups : 0;
}

INLINE float sum_group(const WeightOnly *p, const uint16_t *x, int64_t first, int64_t last) {
    vec sum = {};
    if (p->input_order)
        for (int64_t k = first; k < last; k++) sum += load_part(DTYPE_BFLOAT16, x, p->input_order[k], 1);
    else
        for (int64_t k = first; k < last; k += LANES) sum += load_some(DTYPE_BFLOAT16, x, k, last);
    return sum_lanes(sum);
}

/* Copies one row's inputs of a group, and sums them up. */
INLINE void prepare_group(const WeightOnly *p, uint16_t *inputs, float *sums, int64_t group, int64_t row) {
    int64_t size = p->inputs / p->groups, first = group * size, last = first + size;
    const uint16_t *x = p->x + row * p->row_stride;
    if (streamed_input_bytes(p))
        for (int64_t at = first; at < last; at += FIELDS) {
            uint16_t *to = inputs + at * p->rows + row * FIELDS;
            for (int64_t k = at; k < at + FIELDS; k++) *to++ = x[p->input_order ? p->input_order[k] : k];
        }
    if (streamed_sums(p)) sums[group * p->rows + row] = sum_group(p, x, first, last);
}

INLINE void stream_tile(const WeightOnly *p, const uint16_t *inputs, const float *group_sums, int64_t tile,
                        const int rows) {
    const int chains = rows > 2 ? 1 : rows > 1 ? 2 : PAIRS; /* independent sums: products have a latency */
    int64_t words = p->inputs / FIELDS, group_words = words / p->groups;
    const uint32_t *weight = p->weight + tile * words * LANES;
    vec totals[STREAMED_ROWS] = {};
    for (int64_t group = 0; group < p->groups; group++) {
        vec sums[STREAMED_ROWS][PAIRS] = {};
        for (int64_t word = 0; word < group_words; word++, weight += LANES, inputs += rows * FIELDS) {
            __m512i pairs[PAIRS];
            unpack_from_origin(load_words(weight), pairs);
            __builtin_prefetch(weight + AHEAD * LANES, 0, 3);
            UNROLLED for (int row = 0; row < rows; row++)
                UNROLLED for (int i = 0; i < PAIRS; i++)
                    sums[row][i % chains] =
                        dot(sums[row][i % chains], pairs[i], broadcast_pair(inputs + row * FIELDS + 2 * i));
        }
        vec scales = load_scales(p, tile, group), zeros = {};
        if (streamed_sums(p)) zeros = load_zeros(p, tile, group) - ORIGIN;
        UNROLLED for (int row = 0; row < rows; row++) {
            vec sum = sums[row][0];
            UNROLLED for (int i = 1; i < chains; i++) sum += sums[row][i];
            if (streamed_sums(p)) sum -= zeros * group_sums[group * rows + row];
            totals[row] += scales * sum;
        }
    }
    UNROLLED for (int row = 0; row < rows; row++) write_outputs(p, row, tile, totals[row]);
}

INLINE void stream_rows(const WeightOnly *p, const uint16_t *inputs, const float *sums, int64_t tile) {
    switch (p->rows) {
    case 1: stream_tile(p, inputs, sums, tile, 1); break;
    case 2: stream_tile(p, inputs, sums, tile, 2); break;
    case 3: stream_tile(p, inputs, sums, tile, 3); break;
    case 4: stream_tile(p, inputs, sums, tile, 4); break;
    case 5: stream_tile(p, inputs, sums, tile, 5); break;
    case 6: stream_tile(p, inputs, sums, tile, 6); break;
    case 7: stream_tile(p, inputs, sums, tile, 7); break;
    default: stream_tile(p, inputs, sums, tile, 8); break;
    }
}

static void stream(const WeightOnly *p, uint16_t *inputs, float *sums) {
    if (streamed_input_bytes(p) || streamed_sums(p)) {
#pragma omp for schedule(static) collapse(2)
        for (int64_t group = 0; group < p->groups; group++)
            for (int64_t row = 0; row < p->rows; row++) prepare_group(p, inputs, sums, group, row);
    }
    const uint16_t *from = streamed_input_bytes(p) ? inputs : p->x;
    int64_t tile, last;
    team_share(quotient_up(p->outputs, LANES), &tile, &last);
    for (; tile < last; tile++) stream_rows(p, from, sums, tile);
}

#endif
#endif
