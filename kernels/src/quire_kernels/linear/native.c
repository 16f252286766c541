/* A linear layer of bfloat16 rows over a weight in the panels of quire.ops.linear:
   y[t, n] = sum over k of x[t, k] * w[n, k] + bias[n], sums in float32.

   A panel holds 32 outputs; each of its steps 32 inputs, as two halves of 16 pairs of inputs for 16 outputs: both the
   operand of VDPBF16PS and two AMX tiles, read in the order in which they lie. Threads share the panels.

   A few rows are multiplied by VDPBF16PS, up to 128 by AMX as they are, more by AMX in packed blocks; without AMX all
   by VDPBF16PS. See dots.h and tiles.h. */

#include <omp.h>
#include <stdlib.h>

#include "linear.h"

#ifdef __AVX512BF16__

#include "dots.h"

#define STREAMED_ROWS 4

/* This thread's share of the panels. */
INLINE void share(const Linear *p, int64_t *first, int64_t *last) {
    int64_t panels = quotient_up(p->outputs, PANEL), me = omp_get_thread_num(), all = omp_get_num_threads();
    *first = panels * me / all, *last = panels * (me + 1) / all;
}

#if defined(__AMX_BF16__) && defined(__linux__)

#include "tiles.h"

static int linear_amx(const Linear *p) {
    int is_packed = p->rows > MOST_PAIRS * 2 * BLOCK_ROWS || p->inputs % STEP;
    int64_t blocks = least(quotient_up(p->rows, BLOCK_ROWS), CHUNK_BLOCKS);
    int64_t packed_bytes = blocks * steps_of(p) * TILE_BYTES, sums_floats = SPAN * CHUNK_PAIRS * PAIR_FLOATS;
    int64_t bytes = packed_bytes + p->threads * sums_floats * (int64_t)sizeof(float);
    char *packed = is_packed ? aligned_alloc(64, bytes) : 0;
    if (is_packed && !packed) return 1;
#pragma omp parallel num_threads(p->threads) if (p->threads > 1)
    {
        int64_t first, last;
        share(p, &first, &last);
        float *sums = (float *)(packed + packed_bytes) + omp_get_thread_num() * sums_floats;
        if (is_packed) multiply_many(p, packed, sums, first, last);
        else multiply_few(p, first, last);
        _mm_sfence();
    }
    free(packed);
    return 0;
}

#else

static int linear_amx(const Linear *p) { return 1; }

#endif

/* 0, or 1 where memory is short. */
int quire_linear(const Linear *p) {
    if (p->with_amx && p->rows > STREAMED_ROWS) return linear_amx(p);
#pragma omp parallel num_threads(p->threads) if (p->threads > 1)
    {
        int64_t first, last;
        share(p, &first, &last);
        multiply_by_dots(p, first, last);
        _mm_sfence();
    }
    return 0;
}

#else

int quire_linear(const Linear *p) { return 1; }

#endif
