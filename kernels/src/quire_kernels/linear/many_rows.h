/* Products of many rows by AMX. Two blocks of 16 rows times a panel are four tiles of sums; each step loads four tiles for
   four products, so the loads decide: weights shall come from the L1 cache (CHUNK_STEPS of a panel at a time), inputs, which
   pass by, from the L2 cache (CHUNK_BLOCKS of them). */

#include "tiles.h"

#define TILE_BYTES 1024
#define PAIR_FLOATS (4 * TILE_FLOATS)
#define CHUNK_STEPS 18
#define CHUNK_BLOCKS 32
#define CHUNK_PAIRS (CHUNK_BLOCKS / 2)
#define SPAN 8 /* panels whose sums are kept while all inputs pass */

/* Steps of a panel times one or two packed blocks, the second `next` bytes behind the first. */
INLINE void multiply_blocks(const Linear *p, const char *x, int64_t next, const uint16_t *weight, int64_t steps, float *sums,
                            int has_sums, Waiting *waiting, const int blocks) {
    BEGIN_SUMS(0, has_sums, sums);
    BEGIN_SUMS(1, has_sums, sums + TILE_FLOATS);
    if (blocks > 1) BEGIN_SUMS(2, has_sums, sums + 2 * TILE_FLOATS);
    if (blocks > 1) BEGIN_SUMS(3, has_sums, sums + 3 * TILE_FLOATS);
    for (int64_t step = 0; step < steps; step++, weight += STEP_ELEMENTS, x += TILE_BYTES) {
        _tile_stream_loadd(4, x, 64);
        _tile_loadd(6, weight, 64);
        _tile_dpbf16ps(0, 4, 6);
        _tile_loadd(7, weight + HALF_ELEMENTS, 64);
        _tile_dpbf16ps(1, 4, 7);
        if (blocks > 1) {
            _tile_stream_loadd(5, x + next, 64);
            _tile_dpbf16ps(2, 5, 6);
            _tile_dpbf16ps(3, 5, 7);
        }
        write_some(p, waiting);
    }
    write_rest(p, waiting);
    _tile_stored(0, sums, 64);
    _tile_stored(1, sums + TILE_FLOATS, 64);
    if (blocks > 1) _tile_stored(2, sums + 2 * TILE_FLOATS, 64);
    if (blocks > 1) _tile_stored(3, sums + 3 * TILE_FLOATS, 64);
}

/* Copies a block of rows: [steps, 16, STEP], filled up with 0. */
INLINE void pack_block(const Linear *p, char *to, int64_t block) {
    for (int64_t k = 0; k < p->inputs; k += STEP)
        for (int64_t row = block * BLOCK_ROWS; row < (block + 1) * BLOCK_ROWS; row++, to += 64) {
            int64_t left = row < p->rows ? least(STEP, p->inputs - k) : 0;
            __mmask32 mask = left == STEP ? 0xffffffffu : (1u << left) - 1;
            const uint16_t *from = p->x + least(row, p->rows - 1) * p->row_stride + k;
            _mm512_store_si512(to, _mm512_maskz_loadu_epi16(mask, from));
        }
}

/* A chunk of packed blocks times a span of panels. */
typedef struct {
    const char *packed;
    float *sums; /* [SPAN * CHUNK_PAIRS + 2, 4, 16, 16] */
    int64_t first_block, blocks, first_panel, last_panel;
} Span;

static void multiply_span(const Linear *p, const Span *s) {
    int64_t steps = steps_of(p), parts = quotient_up(steps ? steps : 1, CHUNK_STEPS), pairs = quotient_up(s->blocks, 2);
    int64_t panels = s->last_panel - s->first_panel, all = p->is_gated ? 2 * panels : panels;
    Waiting waiting = {0};
    for (int64_t part = 0, number = 0; part < parts; part++) {
        int64_t step = steps * part / parts, count = steps * (part + 1) / parts - step;
        for (int64_t index = 0; index < all; index++)
            for (int64_t pair = 0; pair < pairs; pair++, number++) {
                int64_t kept = index * CHUNK_PAIRS + pair, panel = s->first_panel + index % panels;
                int is_gate = p->is_gated && index < panels, is_last = part + 1 == parts;
                /* until the other parts, or what the gates are for, have come */
                float *to = s->sums + (parts > 1 || is_gate ? kept : SPAN * CHUNK_PAIRS + (number & 1)) * PAIR_FLOATS;
                const uint16_t *weight = panel_at(p, index < panels ? panel : panels_of(p) + panel, step);
                const char *at = s->packed + (2 * pair * steps + step) * TILE_BYTES;
                if (2 * pair + 1 < s->blocks)
                    multiply_blocks(p, at, steps * TILE_BYTES, weight, count, to, part > 0, &waiting, 2);
                else multiply_blocks(p, at, steps * TILE_BYTES, weight, count, to, part > 0, &waiting, 1);
                if (is_gate || !is_last) continue;
                int64_t row = (s->first_block + 2 * pair) * BLOCK_ROWS, rows = least(2 * BLOCK_ROWS, p->rows - row);
                const float *gates = p->is_gated ? s->sums + (kept - panels * CHUNK_PAIRS) * PAIR_FLOATS : 0;
                waiting = (Waiting){to, gates, panel, BLOCK_ROWS, row, row + BLOCK_ROWS, rows, 0, 0};
            }
    }
    write_rest(p, &waiting);
}

/* All rows, a chunk at a time: the threads share the copying, then the panels. Called by each of them. */
static void multiply_many(const Linear *p, char *packed, float *sums, int64_t first, int64_t last) {
    int64_t blocks = quotient_up(p->rows, BLOCK_ROWS), block_bytes = steps_of(p) * TILE_BYTES;
    int64_t span = p->is_gated ? SPAN / 2 : SPAN;
    configure_tiles(BLOCK_ROWS);
    for (int64_t chunk = 0; chunk < blocks; chunk += CHUNK_BLOCKS) {
        int64_t count = least(CHUNK_BLOCKS, blocks - chunk);
#pragma omp for schedule(static)
        for (int64_t block = 0; block < count; block++) pack_block(p, packed + block * block_bytes, chunk + block);
        for (int64_t panel = first; panel < last; panel += span)
            multiply_span(p, &(Span){packed, sums, chunk, count, panel, least(panel + span, last)});
#pragma omp barrier
    }
    _tile_release();
}
