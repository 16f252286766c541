/* What weight_only_blocks.h multiplies: rows copied into blocks, and panels of unpacked weights. */

#ifndef QUIRE_WEIGHT_ONLY_PANELS_H
#define QUIRE_WEIGHT_ONLY_PANELS_H

#include "weight_only_vectors.h"

#ifdef __AVX512BF16__

#define STEP 32                    /* inputs of an AMX tile */
#define STEP_WORDS (STEP / FIELDS)
#define ROW_BYTES 64               /* of a step */
#define TILE_BYTES 1024
#define CHUNK_ROWS 512             /* so many rows' inputs of a panel stay in the L2 cache */
#define CHUNK_STEPS 8              /* a panel's weights stay in the L1 cache, beside what passes through it */
#define SPAN_TILES 16              /* tiles whose sums are kept while all inputs pass */
#define BLOCK_ROWS 6               /* with PANEL_TILES as many sums as there are registers for */
#define PANEL_TILES 4
#define BLOCK_ROWS_AMX 16
#define PANEL_TILES_AMX 2
#define EXACT_GROUP_AMX 128        /* smaller groups take scaled weights for more rows than they have inputs */

typedef struct {
    const WeightOnly *p;
    char *inputs;               /* [blocks, steps, block_rows, STEP] bfloat16, filled up with 0 */
    int64_t blocks, block_rows, chunk_blocks;
    int64_t steps, group_steps; /* group_steps: scales apply to sums over so many; 0: to weights */
    int64_t tiles, words, group_words;
    int panel_tiles;
} Blocks;

/* Unpacked weights of `panel_tiles` tiles from `tile` on, `steps` of them from `step` on. */
typedef struct {
    int64_t tile, step, steps;
    int segments;               /* of the steps: scales apply to their sums */
    int64_t ends[CHUNK_STEPS];  /* of segments, counted from `step` */
    vec scales[CHUNK_STEPS][PANEL_TILES];
    char weights[CHUNK_STEPS * PANEL_TILES * TILE_BYTES]; /* [steps, panel_tiles, STEP / 2, 16] pairs */
} Panel;

INLINE int64_t step_bytes(const Blocks *b) { return b->block_rows * ROW_BYTES; }

INLINE int64_t block_bytes(const Blocks *b) { return b->steps * step_bytes(b); }

/* Floats of one tile in a thread's sums, [SPAN_TILES, chunk_blocks, block_rows, 16]. */
INLINE int64_t sums_stride(const Blocks *b) { return b->chunk_blocks * b->block_rows * LANES; }

INLINE Blocks cut_rows(const WeightOnly *p) {
    Blocks b = {.p = p};
    int64_t size = p->inputs / p->groups;
    b.blocks = quotient_up(p->rows, p->with_amx ? BLOCK_ROWS_AMX : BLOCK_ROWS);
    b.block_rows = quotient_up(p->rows, b.blocks);
    b.blocks = quotient_up(p->rows, b.block_rows);
    b.chunk_blocks = least(b.blocks, CHUNK_ROWS / b.block_rows);
    b.steps = quotient_up(p->inputs, STEP);
    b.tiles = quotient_up(p->outputs, LANES);
    b.words = p->inputs / FIELDS;
    b.group_words = b.words / p->groups;
    b.panel_tiles = p->with_amx ? PANEL_TILES_AMX : PANEL_TILES;
    int is_slow = p->with_amx && size < EXACT_GROUP_AMX && p->rows > size;
    int is_exact = p->groups == 1 || (size % STEP == 0 && !is_slow);
    b.group_steps = is_exact ? quotient_up(size, STEP) : 0;
    return b;
}

INLINE void pack_inputs(const Blocks *b, int64_t block, int64_t step) {
    const WeightOnly *p = b->p;
    int64_t at = step * STEP, count = least(STEP, p->inputs - at);
    int64_t row = block * b->block_rows, last = row + b->block_rows;
    uint16_t *to = (uint16_t *)(b->inputs + block * block_bytes(b) + step * step_bytes(b));
    for (; row < least(last, p->rows); row++, to += STEP) {
        const uint16_t *from = p->x + row * p->row_stride;
        uint16_t values[STEP] = {};
        if (p->input_order)
            for (int64_t k = 0; k < count; k++) values[k] = from[p->input_order[at + k]];
        else if (count < STEP) memcpy(values, from + at, count * sizeof *values);
        else memcpy(values, from + at, sizeof values);
        memcpy(to, values, sizeof values);
    }
    for (; row < last; row++, to += STEP) memset(to, 0, ROW_BYTES);
}

INLINE const uint32_t *words_of(const Blocks *b, int64_t tile, int64_t step) {
    return b->p->weight + (tile * b->words + step * STEP_WORDS) * LANES;
}

/* One step of a tile: [STEP / 2, 16] pairs. What lies beyond the last inputs is multiplied by 0. */
INLINE void unpack_step(const Blocks *b, int64_t tile, int64_t step, char *to) {
    int64_t at = step * STEP_WORDS;
    int words = (int)least(STEP_WORDS, b->words - at), group = (int)at / (int)b->group_words;
    const uint32_t *weight = words_of(b, tile, step);
    const uint32_t *next = weight + b->panel_tiles * b->words * LANES; /* of the next panel */
    int is_centered = b->group_steps && ORIGIN == MIDDLE && !b->p->zeros;
    vec zeros = load_zeros(b->p, tile, group);
    vec scales = load_scales(b->p, tile, group);
    UNROLLED for (int i = 0; i < STEP_WORDS; i++) {
        int word = i < words ? i : words - 1;
        __m512i loaded = load_words(weight + word * LANES), pairs[PAIRS];
        __builtin_prefetch(next + i * LANES, 0, 2);
        if (is_centered) unpack_from_origin(loaded, pairs);
        else if (b->group_steps) unpack(loaded, zeros, pairs);
        else {
            if ((group + 1) * (int)b->group_words <= (int)at + word) {
                group++;
                zeros = load_zeros(b->p, tile, group);
                scales = load_scales(b->p, tile, group);
            }
            unpack_scaled(loaded, zeros, scales, pairs);
        }
        UNROLLED for (int j = 0; j < PAIRS; j++, to += 64) _mm512_store_si512(to, pairs[j]);
    }
}

INLINE void cut_segments(const Blocks *b, Panel *panel) {
    int64_t size = b->group_steps ? b->group_steps : b->steps, last = panel->step + panel->steps;
    panel->segments = 0;
    for (int64_t step = panel->step; step < last;) {
        int64_t group = step / size;
        for (int i = 0; i < b->panel_tiles; i++)
            panel->scales[panel->segments][i] =
                b->group_steps ? load_scales(b->p, least(panel->tile + i, b->tiles - 1), group) : splat(1);
        step = least(last, (group + 1) * size);
        panel->ends[panel->segments++] = step - panel->step;
    }
}

static void unpack_panel(const Blocks *b, Panel *panel, int64_t tile, int64_t step) {
    panel->tile = tile;
    panel->step = step;
    panel->steps = least(CHUNK_STEPS, b->steps - step);
    cut_segments(b, panel);
    for (int64_t i = 0; i < b->panel_tiles; i++)
        for (int64_t s = 0; s < panel->steps; s++)
            unpack_step(b, least(tile + i, b->tiles - 1), step + s,
                        panel->weights + (s * b->panel_tiles + i) * TILE_BYTES);
}

#endif

#endif
