/* Products by AMX. Two blocks of 16 rows times a panel are four tiles of sums; each step loads four tiles for four
   products, so the loads decide: weights shall come from the L1 cache (CHUNK_STEPS of a panel at a time), inputs,
   which pass by, from the L2 cache (CHUNK_BLOCKS of them). Sums of one pair of blocks are written while the next is
   multiplied. */

#include "amx.h"
#include "linear.h"

#define BLOCK_ROWS 16
#define TILE_BYTES 1024
#define TILE_FLOATS 256
#define PAIR_FLOATS (4 * TILE_FLOATS)
#define CHUNK_STEPS 18
#define CHUNK_BLOCKS 32
#define CHUNK_PAIRS (CHUNK_BLOCKS / 2)
#define SPAN 8         /* panels whose sums are kept while all inputs pass */
#define WRITES_A_STEP 2
#define MOST_PAIRS 4 /* of blocks that are not packed */

/* Tiles 0 and 1: sums of the first block of rows; 2 and 3: of the second; 4, 5: their inputs; 6, 7: weights. */
INLINE void configure_tiles(int64_t rows) {
    amx_config config = {.palette = 1};
    for (int i = 0; i < 8; i++) {
        config.rows[i] = i > 5 ? STEP / 2 : rows;
        config.row_bytes[i] = 64;
    }
    __asm__ volatile("" : : "r"(&config) : "memory"); /* GCC 12 does not know that all of it is read */
    _tile_loadconfig(&config);
}

/* One or two blocks of rows; lengths in bytes. */
typedef struct {
    const char *at;
    int64_t stride, next_step, next_block;
} Inputs;

/* Sums that wait to be written: while the AMX unit multiplies, other units have the time. */
typedef struct {
    const float *sums;  /* [2 blocks][2 halves][16][16] */
    const float *gates; /* the same, where outputs are gated; else null */
    int64_t panel, block_rows;
    int64_t left, block, row; /* rows to be written yet, and the next one's place */
    int64_t first[2];         /* row of each block */
} Waiting;

INLINE Sums sums_at(const float *sums, int64_t at) {
    return (Sums){load(DTYPE_FLOAT32, sums, at), load(DTYPE_FLOAT32, sums, at + TILE_FLOATS)};
}

INLINE void write_row(const Linear *p, Waiting *w) {
    int64_t at = w->block * 2 * TILE_FLOATS + w->row * LANES, row = w->first[w->block] + w->row;
    if (w->gates) write_gated(p, row, w->panel, sums_at(w->gates, at), sums_at(w->sums, at));
    else write_sums(p, row, w->panel, sums_at(w->sums, at));
    w->left--;
    if (++w->row == w->block_rows) w->row = 0, w->block++;
}

INLINE void write_rest(const Linear *p, Waiting *w) {
    while (w->left > 0) write_row(p, w);
}

/* Steps of a panel times blocks of rows; sums [4][16][16] as the tiles are numbered. Packed inputs leave the L1 cache to
   the weights; a weight that one pair of blocks passes is asked for ahead. */
INLINE void multiply_tiles(const Linear *p, Inputs x, const uint16_t *weight, int64_t steps, float *sums,
                           int has_sums, Waiting *waiting, const int blocks, const int is_packed, const int is_passed_once) {
    if (has_sums) {
        _tile_loadd(0, sums, 64);
        _tile_loadd(1, sums + TILE_FLOATS, 64);
        if (blocks > 1) _tile_loadd(2, sums + 2 * TILE_FLOATS, 64);
        if (blocks > 1) _tile_loadd(3, sums + 3 * TILE_FLOATS, 64);
    } else {
        _tile_zero(0);
        _tile_zero(1);
        if (blocks > 1) _tile_zero(2);
        if (blocks > 1) _tile_zero(3);
    }
    for (int64_t step = 0; step < steps; step++, weight += STEP_ELEMENTS, x.at += x.next_step) {
        for (int i = 0; is_passed_once && i < STEP_ELEMENTS; i += LINE_ELEMENTS)
            _mm_prefetch((const char *)(weight + AHEAD + i), _MM_HINT_T0);
        if (is_packed) _tile_stream_loadd(4, x.at, x.stride);
        else _tile_loadd(4, x.at, x.stride);
        _tile_loadd(6, weight, 64);
        _tile_dpbf16ps(0, 4, 6);
        _tile_loadd(7, weight + HALF_ELEMENTS, 64);
        _tile_dpbf16ps(1, 4, 7);
        if (blocks > 1) {
            if (is_packed) _tile_stream_loadd(5, x.at + x.next_block, x.stride);
            else _tile_loadd(5, x.at + x.next_block, x.stride);
            _tile_dpbf16ps(2, 5, 6);
            _tile_dpbf16ps(3, 5, 7);
        }
        for (int i = 0; i < WRITES_A_STEP && waiting->left > 0; i++) write_row(p, waiting);
    }
    write_rest(p, waiting);
    _tile_stored(0, sums, 64);
    _tile_stored(1, sums + TILE_FLOATS, 64);
    if (blocks > 1) _tile_stored(2, sums + 2 * TILE_FLOATS, 64);
    if (blocks > 1) _tile_stored(3, sums + 3 * TILE_FLOATS, 64);
}

/* Up to MOST_PAIRS * 32 rows, from where they are, times panels `panel` to `last`. Blocks have equally many rows: the
   last one may share some with the one before. */
static void multiply_few(const Linear *p, int64_t panel, int64_t last) {
    float sums[2][PAIR_FLOATS] __attribute__((aligned(64))), gates[MOST_PAIRS][PAIR_FLOATS] __attribute__((aligned(64)));
    int64_t pairs = quotient_up(p->rows, 2 * BLOCK_ROWS), blocks = p->rows > BLOCK_ROWS ? 2 * pairs : 1;
    int64_t rows = quotient_up(p->rows, blocks), stride = p->row_stride * (int64_t)sizeof *p->x, steps = steps_of(p);
    Waiting waiting = {0};
    configure_tiles(rows);
    for (int64_t number = 0; panel < last; panel++)
        for (int half = !p->is_gated; half < 2; half++)
            for (int64_t pair = 0; pair < pairs; pair++, number++) {
                int64_t first = least(2 * pair * rows, p->rows - rows), second = least(first + rows, p->rows - rows);
                Inputs x = {(const char *)p->x + first * stride, stride, STEP * (int64_t)sizeof *p->x, (second - first) * stride};
                const uint16_t *weight = panel_at(p, p->is_gated && half ? panels_of(p) + panel : panel, 0);
                float *to = half ? sums[number & 1] : gates[pair];
                if (pairs > 1) multiply_tiles(p, x, weight, steps, to, 0, &waiting, 2, 0, 0);
                else if (blocks > 1) multiply_tiles(p, x, weight, steps, to, 0, &waiting, 2, 0, 1);
                else multiply_tiles(p, x, weight, steps, to, 0, &waiting, 1, 0, 1);
                if (half)
                    waiting = (Waiting){to, p->is_gated ? gates[pair] : 0, panel, rows, blocks > 1 ? 2 * rows : rows, 0, 0, {first, second}};
            }
    write_rest(p, &waiting);
    _tile_release();
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
    int64_t steps = steps_of(p), parts = quotient_up(steps, CHUNK_STEPS), pairs = quotient_up(s->blocks, 2);
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
                Inputs x = {s->packed + (2 * pair * steps + step) * TILE_BYTES, 64, TILE_BYTES, steps * TILE_BYTES};
                if (2 * pair + 1 < s->blocks)
                    multiply_tiles(p, x, weight, count, to, part > 0, &waiting, 2, 1, 0);
                else multiply_tiles(p, x, weight, count, to, part > 0, &waiting, 1, 1, 0);
                if (is_gate || !is_last) continue;
                int64_t row = (s->first_block + 2 * pair) * BLOCK_ROWS, rows = least(2 * BLOCK_ROWS, p->rows - row);
                const float *gates = p->is_gated ? s->sums + (kept - panels * CHUNK_PAIRS) * PAIR_FLOATS : 0;
                waiting = (Waiting){to, gates, panel, BLOCK_ROWS, rows, 0, 0, {row, row + BLOCK_ROWS}};
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
