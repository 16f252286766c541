/* Products by VDPBF16PS: a few rows while the weight streams by, or, without AMX, blocks of up to 12 rows. */

#include "linear.h"

#define DOT_ROWS 12        /* with two vectors of outputs as many sums as there are registers for */
#define DOT_CHUNK_ROWS 240 /* so many rows of inputs stay in the L2 cache */

INLINE vec dot(vec sum, __m512i a, __m512i b) {
    return (vec)_mm512_dpbf16_ps((__m512)sum, (__m512bh)a, (__m512bh)b);
}

INLINE __m512i broadcast_pair(const uint16_t *at) {
    int32_t pair;
    memcpy(&pair, at, sizeof pair);
    return _mm512_set1_epi32(pair);
}

/* The products of one pair of inputs. */
INLINE void add_pair(const Linear *p, const uint16_t *weight, const uint16_t *x, vec sums[][2][4], const int rows,
                     const int chain) {
    __m512i low = _mm512_loadu_si512(weight), high = _mm512_loadu_si512(weight + HALF_ELEMENTS);
    UNROLLED for (int row = 0; row < rows; row++) {
        __m512i input = broadcast_pair(x + row * p->row_stride);
        sums[row][0][chain] = dot(sums[row][0][chain], low, input);
        sums[row][1][chain] = dot(sums[row][1][chain], high, input);
    }
}

/* One panel times `rows` rows from `row` on. */
INLINE void dot_panel(const Linear *p, int64_t panel, int64_t row, Sums *results, const int rows) {
    const int chains = rows > 2 ? 1 : rows > 1 ? 2 : 4; /* independent sums: products have a latency */
    const uint16_t *weight = panel_at(p, panel, 0), *x = p->x + row * p->row_stride;
    vec sums[DOT_ROWS][2][4] = {};
    int64_t k = 0;
    for (; k + STEP <= p->inputs; k += STEP, weight += STEP_ELEMENTS)
        UNROLLED for (int pair = 0; pair < STEP / 2; pair++) {
            const uint16_t *at = weight + pair * 2 * LANES;
            _mm_prefetch((const char *)(at + AHEAD), _MM_HINT_T0);
            _mm_prefetch((const char *)(at + AHEAD + HALF_ELEMENTS), _MM_HINT_T0);
            add_pair(p, at, x + k + 2 * pair, sums, rows, pair % chains);
        }
    for (; k < p->inputs; k += 2, weight += 2 * LANES) add_pair(p, weight, x + k, sums, rows, 0);
    UNROLLED for (int r = 0; r < rows; r++) {
        vec low = sums[r][0][0], high = sums[r][1][0];
        UNROLLED for (int i = 1; i < chains; i++) low += sums[r][0][i], high += sums[r][1][i];
        results[r] = (Sums){low, high};
    }
}

static void dot_rows(const Linear *p, int64_t panel, int64_t row, int64_t rows, Sums *results) {
    switch (rows) {
    case 1: dot_panel(p, panel, row, results, 1); break;
    case 2: dot_panel(p, panel, row, results, 2); break;
    case 3: dot_panel(p, panel, row, results, 3); break;
    case 4: dot_panel(p, panel, row, results, 4); break;
    case 5: dot_panel(p, panel, row, results, 5); break;
    case 6: dot_panel(p, panel, row, results, 6); break;
    case 7: dot_panel(p, panel, row, results, 7); break;
    case 8: dot_panel(p, panel, row, results, 8); break;
    case 9: dot_panel(p, panel, row, results, 9); break;
    case 10: dot_panel(p, panel, row, results, 10); break;
    case 11: dot_panel(p, panel, row, results, 11); break;
    default: dot_panel(p, panel, row, results, 12); break;
    }
}

INLINE void dot_block(const Linear *p, int64_t panel, int64_t row, int64_t rows) {
    Sums results[DOT_ROWS], values[DOT_ROWS];
    dot_rows(p, panel, row, rows, results);
    if (p->is_gated) dot_rows(p, panels_of(p) + panel, row, rows, values);
    for (int64_t i = 0; i < rows; i++) {
        if (p->is_gated) write_gated(p, row + i, panel, results[i], values[i]);
        else write_sums(p, row + i, panel, results[i]);
    }
}

/* Panels `first` to `last`: rows in blocks of equal sizes, as many as stay in the L2 cache at a time. */
static void multiply_by_dots(const Linear *p, int64_t first, int64_t last) {
    for (int64_t chunk = 0; chunk < p->rows; chunk += DOT_CHUNK_ROWS) {
        int64_t rows = least(DOT_CHUNK_ROWS, p->rows - chunk), blocks = quotient_up(rows, DOT_ROWS);
        for (int64_t panel = first; panel < last; panel++)
            for (int64_t block = 0; block < blocks; block++) {
                int64_t row = rows * block / blocks, end = rows * (block + 1) / blocks;
                dot_block(p, panel, chunk + row, end - row);
            }
    }
}
