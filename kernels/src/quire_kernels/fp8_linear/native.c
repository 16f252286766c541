/* A linear layer of bfloat16 rows over float8_e4m3fn weights [outputs, inputs] with a scale per block.

   Every float8 is a bfloat16: a table of 128 magnitudes gives its bytes. Few rows are multiplied while the weights
   stream by, sums in float32; for more rows weights are widened by chunks, for a product of someone else's. */

#include "vector.h"

#if defined(__AVX512BF16__) && defined(__AVX512VBMI__) && defined(__AVX512BW__)
#define QUIRE_FP8 1
#endif

int quire_fp8_is_supported(void) {
#ifdef QUIRE_FP8
    return 1;
#else
    return 0;
#endif
}

typedef struct {
    const uint16_t *x;         /* [rows, inputs], `stride` elements from row to row */
    const float *input_scales; /* [rows, groups of inputs], or null: 1 */
    const uint8_t *weight;     /* [outputs, inputs] */
    const float *scales;       /* [blocks of outputs, groups of inputs], or null (when widening): 1 */
    const uint16_t *bias;      /* [outputs] or null */
    uint16_t *out;             /* [rows, outputs]; of widened weights [last - first, inputs] */
    int64_t rows, inputs, outputs, stride, block_rows, block_columns, first, last;
    int32_t threads;
} Fp8Linear;

typedef struct {
    const uint16_t *x;         /* [rows, inputs], `stride` elements from row to row */
    const float *input_scale;  /* [1], or null: by row and group */
    uint16_t *values;          /* [rows, inputs], float8 values */
    float *scales;             /* [rows, groups] */
    int64_t rows, inputs, stride, group;
    int32_t threads;
} Fp8Round;

#ifdef QUIRE_FP8

#include <omp.h>

#define STEP 64
#define MAX_ROWS 8
#define AHEAD 4096       /* bytes of weights */
#define LARGEST 448.0f

/* The high and low bytes of the magnitudes' bfloat16s. */
typedef struct {
    uint8_t high[128], low[128];
} Table;

static void fill_table(Table *table) {
    for (int code = 0; code < 128; code++) {
        float small = (float)code * 0x1p-9f; /* a subnormal: no exponent */
        uint32_t bits, normal = (uint32_t)(code << 4) + (120 << 7);
        memcpy(&bits, &small, sizeof bits);
        bits = code < 8 ? bits >> 16 : code == 127 ? 0x7fc0 : normal;
        table->high[code] = (uint8_t)(bits >> 8);
        table->low[code] = (uint8_t)bits;
    }
}

/* Up to 64 weights, as 2 * 32 bfloat16s. */
INLINE void widen_step(const Table *table, const uint8_t *from, int64_t left, __m512i wide[2]) {
    const __m512i order = _mm512_setr_epi64(0, 4, 1, 5, 2, 6, 3, 7);
    __mmask64 some = left >= STEP ? ~0ull : (1ull << left) - 1;
    __m512i codes = _mm512_permutexvar_epi64(order, _mm512_maskz_loadu_epi8(some, from));
    __m512i low = _mm512_permutex2var_epi8(_mm512_loadu_si512(table->low), codes, _mm512_loadu_si512(table->low + 64));
    __m512i high = _mm512_permutex2var_epi8(_mm512_loadu_si512(table->high), codes, _mm512_loadu_si512(table->high + 64));
    high = _mm512_ternarylogic_epi32(high, codes, _mm512_set1_epi8((char)0x80), 0xf8); /* high | codes & 0x80 */
    wide[0] = _mm512_unpacklo_epi8(low, high);
    wide[1] = _mm512_unpackhi_epi8(low, high);
}

/* Up to 32 inputs. */
INLINE __m512i load_inputs(const uint16_t *from, int64_t left) {
    return _mm512_maskz_loadu_epi16(left >= 32 ? ~0u : left > 0 ? (1u << left) - 1 : 0, from);
}

/* One output of R rows. */
INLINE void stream_output(int R, const Table *table, const Fp8Linear *p, int64_t first_row, int64_t output) {
    const uint8_t *weight = p->weight + output * p->inputs;
    const uint16_t *x = p->x + first_row * p->stride;
    int64_t groups = (p->inputs + p->block_columns - 1) / p->block_columns;
    const float *scales = p->scales + output / p->block_rows * groups;
    vec totals[MAX_ROWS] = {};
    for (int64_t group = 0, at = 0; group < groups; group++) {
        int64_t end = at + p->block_columns < p->inputs ? at + p->block_columns : p->inputs;
        __m512 sums[MAX_ROWS][2] = {};
        for (; at < end; at += STEP) {
            __m512i wide[2];
            int64_t left = end - at;
            widen_step(table, weight + at, left, wide);
            __builtin_prefetch(weight + at + AHEAD, 0, 3);
#pragma GCC unroll 8
            for (int r = 0; r < R; r++)
#pragma GCC unroll 2
                for (int i = 0; i < 2; i++) {
                    const uint16_t *from = x + r * p->stride + at + 32 * i;
                    __m512i inputs = left >= STEP ? _mm512_loadu_si512(from) : load_inputs(from, left - 32 * i);
                    sums[r][i] = _mm512_dpbf16_ps(sums[r][i], (__m512bh)wide[i], (__m512bh)inputs);
                }
        }
        at = end;
#pragma GCC unroll 8
        for (int r = 0; r < R; r++) {
            float input_scale = p->input_scales ? p->input_scales[(first_row + r) * groups + group] : 1.0f;
            totals[r] += ((vec)sums[r][0] + (vec)sums[r][1]) * (scales[group] * input_scale);
        }
    }
    vec bias = p->bias ? load_part(DTYPE_BFLOAT16, p->bias, output, 1) : splat(0.0f);
#pragma GCC unroll 8
    for (int r = 0; r < R; r++)
        store_part(DTYPE_BFLOAT16, p->out, (first_row + r) * p->outputs + output, splat(sum_lanes(totals[r])) + bias, 1);
}

INLINE void stream_rows(const Table *table, const Fp8Linear *p, int64_t row, int64_t output) {
    switch (p->rows - row) {
    case 1: stream_output(1, table, p, row, output); break;
    case 2: stream_output(2, table, p, row, output); break;
    case 3: stream_output(3, table, p, row, output); break;
    case 4: stream_output(4, table, p, row, output); break;
    case 5: stream_output(5, table, p, row, output); break;
    case 6: stream_output(6, table, p, row, output); break;
    case 7: stream_output(7, table, p, row, output); break;
    default: stream_output(8, table, p, row, output);
    }
}

void quire_fp8_stream(const Fp8Linear *p) {
    Table table;
    fill_table(&table);
#pragma omp parallel for num_threads(p->threads) schedule(static) if (p->threads > 1)
    for (int64_t output = 0; output < p->outputs; output++)
        for (int64_t row = 0; row < p->rows; row += MAX_ROWS) stream_rows(&table, p, row, output);
}

/* Weights of the outputs from `first` to `last` times their scales, rounded to bfloat16. */
void quire_fp8_widen(const Fp8Linear *p) {
    Table table;
    fill_table(&table);
    int64_t groups = (p->inputs + p->block_columns - 1) / p->block_columns;
#pragma omp parallel for num_threads(p->threads) schedule(static) if (p->threads > 1)
    for (int64_t output = p->first; output < p->last; output++) {
        const uint8_t *weight = p->weight + output * p->inputs;
        uint16_t *to = p->out + (output - p->first) * p->inputs;
        for (int64_t group = 0, at = 0; group < groups; group++) {
            int64_t end = at + p->block_columns < p->inputs ? at + p->block_columns : p->inputs;
            float scale = p->scales ? p->scales[output / p->block_rows * groups + group] : 1.0f;
            for (; at < end; at += STEP) {
                __m512i wide[2];
                widen_step(&table, weight + at, end - at, wide);
                if (!p->scales && end - at >= STEP) {
                    memcpy(to + at, wide, sizeof wide);
                    continue;
                }
                for (int64_t i = 0; i < 4; i++) {
                    int64_t left = end - at - LANES * i;
                    if (left <= 0) break;
                    vech part = (vech)(i & 1 ? _mm512_extracti64x4_epi64(wide[i / 2], 1) : _mm512_castsi512_si256(wide[i / 2]));
                    store_some(DTYPE_BFLOAT16, to + at, LANES * i, widen(part) * scale, LANES * i + left);
                }
            }
            at = end;
        }
    }
}

/* The nearest float8, ties to even, of numbers up to LARGEST: adding 1.5 * 2^(e + 20) rounds to 3 bits below e. */
INLINE vec round_fp8(vec x) {
    veci exponent = (veci)x & 0x7f800000, least = (veci){} + (121 << 23); /* 2^-6: subnormals share its steps */
    exponent = (veci)blend(exponent > least, (vec)exponent, (vec)least);
    vec magic = (vec)((exponent + (20 << 23)) | 0x400000);
    return (x + magic) - magic;
}

void quire_fp8_round(const Fp8Round *p) {
    int64_t groups = (p->inputs + p->group - 1) / p->group;
#pragma omp parallel for num_threads(p->threads) schedule(static) if (p->threads > 1 && p->rows > 7)
    for (int64_t row = 0; row < p->rows; row++)
        for (int64_t group = 0; group < groups; group++) {
            const uint16_t *x = p->x + row * p->stride;
            int64_t start = group * p->group, end = start + p->group < p->inputs ? start + p->group : p->inputs;
            vec largest = {};
            for (int64_t at = start; at < end; at += LANES) {
                vec value = load_some(DTYPE_BFLOAT16, x, at, end);
                largest = maximum(maximum(value, -value), largest);
            }
            float scale = max_lanes(largest) / LARGEST;
            if (p->input_scale) scale = *p->input_scale;
            else if (scale == 0) scale = 1;
            p->scales[row * groups + group] = scale;
            for (int64_t at = start; at < end; at += LANES) {
                vec value = load_some(DTYPE_BFLOAT16, x, at, end) / scale;
                value = blend(value > LARGEST, splat(LARGEST), blend(value < -LARGEST, splat(-LARGEST), value));
                value = blend(value == value, round_fp8(value), value);
                store_some(DTYPE_BFLOAT16, p->values + row * p->inputs, at, value, end);
            }
        }
}

#else

void quire_fp8_stream(const Fp8Linear *p) { (void)p; }
void quire_fp8_widen(const Fp8Linear *p) { (void)p; }
void quire_fp8_round(const Fp8Round *p) { (void)p; }

#endif
