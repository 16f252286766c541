/* A linear layer of bfloat16 rows over a weight in the panels of quire.ops.linear:
   y[t, n] = sum over k of x[t, k] * w[n, k] + bias[n], sums in float32.

   A panel holds 32 outputs; each of its steps 32 inputs, as two halves of 16 pairs of inputs for 16 outputs: both the
   operand of VDPBF16PS and two AMX tiles, read in the order in which they lie. Threads share the panels.

   One row is multiplied by VDPBF16PS, others by AMX (up to 192 or many); without AMX all by VDPBF16PS; without both all
   are widened to float32. See dots.h, few_rows.h, many_rows.h and vectors.h. */

#include "linear.h"
#include "team.h"
#include "vectors.h"

#define LARGE_BYTES (1 << 20) /* outputs that a core's L2 cache cannot hold beside what they are made of */

#ifdef __AVX512BF16__

#include "dots.h"

#define STREAMED_ROWS 1

#if defined(__AMX_BF16__) && defined(__linux__)

#include "few_rows.h"
#include "many_rows.h"

static int linear_amx(const Linear *p, int64_t first, int64_t last) {
    if (p->rows <= MOST_ROWS && p->inputs % STEP == 0) return multiply_few(p, first, last);
    int64_t blocks = least(quotient_up(p->rows, BLOCK_ROWS), CHUNK_BLOCKS);
    int64_t packed_bytes = blocks * steps_of(p) * TILE_BYTES, sums_floats = (SPAN * CHUNK_PAIRS + 2) * PAIR_FLOATS;
    char *packed = team_memory(packed_bytes + omp_get_num_threads() * sums_floats * (int64_t)sizeof(float));
    if (!packed) return 1;
    float *sums = (float *)(packed + packed_bytes) + omp_get_thread_num() * sums_floats;
    multiply_many(p, packed, sums, first, last);
    free_team_memory(packed);
    return 0;
}

#else

static int linear_amx(const Linear *p, int64_t first, int64_t last) { return 1; }

#endif

static int linear_bfloat16(const Linear *p, int64_t first, int64_t last) {
    int failed = 0;
    if (p->with_amx && p->rows > STREAMED_ROWS) failed = linear_amx(p, first, last);
    else multiply_by_dots(p, first, last);
    _mm_sfence();
    return failed;
}

#else

static int linear_bfloat16(const Linear *p, int64_t first, int64_t last) { return 1; }

#endif

/* The threads share the panels. */
static int linear(const Linear *arguments) {
    Linear p = *arguments;
    int64_t first, last, written = p.is_gated ? p.outputs / 2 : p.outputs;
    p.streams_out = written % LINE_ELEMENTS == 0 && p.rows * written * (int64_t)sizeof *p.out >= LARGE_BYTES;
    team_share(panels_of(&p), &first, &last);
    return p.with_dots ? linear_bfloat16(&p, first, last) : multiply_by_vectors(&p, first, last);
}

QUIRE_KERNEL(linear, Linear, linear, 0)
