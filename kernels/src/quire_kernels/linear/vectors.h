/* Products of float32, for CPUs that do not multiply bfloat16: weights are widened on the way, and used for a block of
   rows, whose sums stay in registers. One or two rows are widened on the way too, while the weight streams by; more of
   them beforehand, as many as stay in the L2 cache. */

#include "linear.h"
#include "registers.h"
#include "team.h"

#define FEW_ROWS 2
#define BLOCK_VECTORS (REGISTERS > 1 ? REGISTERS : 2)    /* sums of a row of a block: of half a panel, or all of it */
#define BLOCK_ROWS_WIDE (MOST_SUMS / BLOCK_VECTORS)
#define WIDE_FLOATS (1 << 16)

/* Rows of inputs, `stride` elements apart: bfloat16, or float32 where they are wide. */
typedef struct {
    const void *at;
    int64_t stride;
} Rows;

/* Input k of a row, or the next one, in all lanes. */
INLINE reg load_input(const Rows *x, int64_t row, int64_t k, const int next, const int is_wide) {
    if (is_wide) return (reg){} + ((const float *)x->at)[row * x->stride + k + next];
    uint32_t both;
    memcpy(&both, (const uint16_t *)x->at + row * x->stride + k, sizeof both);
    regu bits = (regu){} + both;
    return (reg)(next ? bits & 0xffff0000u : bits << 16);
}

/* The products of a pair of inputs with `count` vectors of outputs. */
INLINE void add_wide(const uint16_t *weight, const Rows *x, int64_t k, reg sums[][2 * REGISTERS][4], const int rows,
                     const int count, const int chains, const int pair, const int is_wide) {
    UNROLLED for (int next = 0; next < 2; next++) {
        const int chain = (2 * pair + next) % chains;
        reg weights[2 * REGISTERS];
        UNROLLED for (int i = 0; i < count; i++) {
            regu bits = load_integers(weight + i / REGISTERS * HALF_ELEMENTS + i % REGISTERS * 2 * WIDTH);
            weights[i] = (reg)(next ? bits & 0xffff0000u : bits << 16);
        }
        UNROLLED for (int row = 0; row < rows; row++) {
            reg input = load_input(x, row, k, next, is_wide);
            UNROLLED for (int i = 0; i < count; i++) sums[row][i][chain] += input * weights[i];
        }
    }
}

/* A panel, or `count` vectors of its outputs from `weight` on, times some rows. */
INLINE void multiply_wide(const Linear *p, const uint16_t *weight, const Rows *x, float *results, const int rows,
                          const int count, const int is_wide) {
    const int chains = 4 * rows * count <= ENOUGH_SUMS ? 4 : 2 * rows * count <= ENOUGH_SUMS ? 2 : 1;
    reg sums[BLOCK_ROWS_WIDE][2 * REGISTERS][4] = {};
    int64_t k = 0;
    for (; k + STEP <= p->inputs; k += STEP, weight += STEP_ELEMENTS)
#pragma GCC unroll 2
        for (int pair = 0; pair < STEP / 2; pair++) {
            const uint16_t *at = weight + pair * 2 * LANES;
            __builtin_prefetch(at + AHEAD, 0, 3);
            if (count > REGISTERS) __builtin_prefetch(at + AHEAD + HALF_ELEMENTS, 0, 3);
            add_wide(at, x, k + 2 * pair, sums, rows, count, chains, pair % 2, is_wide);
        }
    for (; k < p->inputs; k += 2, weight += 2 * LANES) add_wide(weight, x, k, sums, rows, count, chains, 0, is_wide);
    UNROLLED for (int row = 0; row < rows; row++)
        UNROLLED for (int i = 0; i < count; i++) {
            UNROLLED for (int chain = 1; chain < chains; chain++) sums[row][i][0] += sums[row][i][chain];
            store_floats(results + row * PANEL + i * WIDTH, sums[row][i][0]);
        }
}

/* results [rows, PANEL] */
INLINE void multiply_panel(const Linear *p, int64_t panel, const Rows *x, float *results, const int rows, const int is_wide) {
    const uint16_t *weight = panel_at(p, panel, 0);
    const int count = is_wide ? BLOCK_VECTORS : 2 * REGISTERS;
    multiply_wide(p, weight, x, results, rows, count, is_wide);
    if (count == REGISTERS) multiply_wide(p, weight + HALF_ELEMENTS, x, results + LANES, rows, count, is_wide);
}

#define CASE(rows, is_wide) case rows: multiply_panel(p, panel, x, results, rows, is_wide); break

static void multiply_few_rows(const Linear *p, int64_t panel, const Rows *x, int64_t rows, float *results) {
    switch (rows) {
        CASE(1, 0);
        CASE(2, 0);
    }
}

/* Blocks are of equal sizes: at least half of the largest one. */
static void multiply_wide_rows(const Linear *p, int64_t panel, const Rows *x, int64_t rows, float *results) {
    switch (rows) {
        CASE(1, 1);
        CASE(2, 1);
        CASE(3, 1);
#if BLOCK_ROWS_WIDE > 3
        CASE(4, 1);
        CASE(5, 1);
        CASE(6, 1);
#endif
#if BLOCK_ROWS_WIDE > 6
        CASE(7, 1);
        CASE(8, 1);
        CASE(9, 1);
        CASE(10, 1);
        CASE(11, 1);
        CASE(12, 1);
#endif
    }
}

INLINE vec result(const Linear *p, const float *results, int64_t panel, int64_t at) {
    int64_t first = panel * PANEL + at;
    vec sum = load(DTYPE_FLOAT32, results, at);
    if (p->bias && first < p->outputs) sum += load_some(DTYPE_BFLOAT16, p->bias, first, p->outputs);
    return round_to(DTYPE_BFLOAT16, sum);
}

/* Writes a panel's outputs of one row; `gates` or null. The roundings are those of linear.h. */
INLINE void write_results(const Linear *p, int64_t row, int64_t panel, const float *results, const float *gates) {
    int64_t size = p->is_gated ? p->outputs / 2 : p->outputs;
    for (int64_t at = 0; at < PANEL && panel * PANEL + at < size; at += LANES) {
        int64_t to = row * size + panel * PANEL + at, left = size - panel * PANEL - at;
        vec x = result(p, results, gates ? panels_of(p) + panel : panel, at);
        if (gates) x *= round_to(DTYPE_BFLOAT16, silu(result(p, gates, panel, at)));
        if (p->residual) x += load_some(DTYPE_BFLOAT16, p->residual + to, 0, left);
        store_some(DTYPE_BFLOAT16, p->out + to, 0, x, left);
    }
}

/* Rows `row` to `row + rows`, of which `x` is the first one. */
static void multiply_block(const Linear *p, int64_t panel, const Rows *x, int64_t row, int64_t rows, int is_wide) {
    float results[2][BLOCK_ROWS_WIDE * PANEL];
    for (int half = !p->is_gated; half < 2; half++) {
        int64_t number = p->is_gated && half ? panels_of(p) + panel : panel;
        if (is_wide) multiply_wide_rows(p, number, x, rows, results[half]);
        else multiply_few_rows(p, number, x, rows, results[half]);
    }
    for (int64_t i = 0; i < rows; i++)
        write_results(p, row + i, panel, results[1] + i * PANEL, p->is_gated ? results[0] + i * PANEL : 0);
}

/* Panels `first` to `last`; 0, or 1 where memory is short. */
static int multiply_by_vectors(const Linear *p, int64_t first, int64_t last) {
    if (p->rows <= FEW_ROWS) {
        for (; first < last; first++) multiply_block(p, first, &(Rows){p->x, p->row_stride}, 0, p->rows, 0);
        return 0;
    }
    int64_t fitting = WIDE_FLOATS / p->inputs / BLOCK_ROWS_WIDE, size = BLOCK_ROWS_WIDE * (fitting > 1 ? fitting : 1);
    float *wide = team_memory(least(size, p->rows) * p->inputs * (int64_t)sizeof *wide);
    if (!wide) return 1;
    for (int64_t chunk = 0; chunk < p->rows; chunk += size) {
        int64_t rows = least(size, p->rows - chunk), blocks = quotient_up(rows, BLOCK_ROWS_WIDE);
#pragma omp for schedule(static)
        for (int64_t row = 0; row < rows; row++)
            for (int64_t k = 0; k < p->inputs; k += LANES)
                store_some(DTYPE_FLOAT32, wide + row * p->inputs, k,
                           load_some(DTYPE_BFLOAT16, p->x + (chunk + row) * p->row_stride, k, p->inputs), p->inputs);
        for (int64_t panel = first; panel < last; panel++)
            for (int64_t block = 0; block < blocks; block++) {
                int64_t row = rows * block / blocks, end = rows * (block + 1) / blocks;
                multiply_block(p, panel, &(Rows){wide + row * p->inputs, p->inputs}, chunk + row, end - row, 1);
            }
#pragma omp barrier
    }
    free_team_memory(wide);
    return 0;
}
