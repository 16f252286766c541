/* weight_only.h for many rows: panels of unpacked weights times blocks of rows, by AMX tiles or by VDPBF16PS.

   Rows are copied once into blocks of whole steps. Each thread takes output tiles; a panel of them, CHUNK_STEPS
   long, is unpacked into the L1 cache (while the next one's words are on their way) and multiplied with all blocks
   of the chunk of rows. Weights are unpacked as exact integers, and a group's sums are multiplied by its scale.
   That costs AMX nothing in groups of 128, but a fifth to a third of its speed in groups of 64 and up to half in
   groups of 32, so there many rows take weights (q - zero) * scale, rounded to bfloat16, as a 16-bit checkpoint
   has them. So do groups that do not consist of whole steps. */

#ifndef QUIRE_WEIGHT_ONLY_BLOCKS_H
#define QUIRE_WEIGHT_ONLY_BLOCKS_H

#include "amx.h"
#include "weight_only_panels.h"

#ifdef __AVX512BF16__

/* Adds products, [rows, 16], times scales to sums, or sets these. */
INLINE void fold(float *sums, const float *products, vec scales, int is_first, int64_t rows) {
    for (int64_t at = 0; at < rows * LANES; at += LANES) {
        vec sum = load(DTYPE_FLOAT32, products, at) * scales;
        store(DTYPE_FLOAT32, sums, at, is_first ? sum : sum + load(DTYPE_FLOAT32, sums, at));
    }
}

INLINE void multiply_block(const Blocks *b, const Panel *panel, int64_t block, float *sums, const int rows) {
    const char *inputs = b->inputs + block * block_bytes(b) + panel->step * step_bytes(b);
    const char *weights = panel->weights;
    for (int64_t segment = 0, step = 0; segment < panel->segments; segment++) {
        vec products[PANEL_TILES][BLOCK_ROWS] = {};
        for (; step < panel->ends[segment]; step++, inputs += rows * ROW_BYTES) {
            for (int pair = 0; pair < STEP / 2; pair++) {
                __m512i pairs[PANEL_TILES];
                UNROLLED for (int i = 0; i < PANEL_TILES; i++)
                    pairs[i] = _mm512_load_si512(weights + i * TILE_BYTES + pair * 64);
                UNROLLED for (int row = 0; row < rows; row++) {
                    __m512i input = broadcast_pair(inputs + row * ROW_BYTES + pair * 4);
                    UNROLLED for (int i = 0; i < PANEL_TILES; i++)
                        products[i][row] = dot(products[i][row], pairs[i], input);
                }
            }
            weights += PANEL_TILES * TILE_BYTES;
        }
        int is_first = panel->step + segment == 0;
        UNROLLED for (int i = 0; i < PANEL_TILES; i++)
            UNROLLED for (int row = 0; row < rows; row++)
                fold(sums + i * sums_stride(b) + row * LANES, (const float *)&products[i][row],
                     panel->scales[segment][i], is_first, 1);
    }
}

static void multiply_blocks(const Blocks *b, const Panel *panel, int64_t first, int64_t last, float *sums) {
    for (int64_t block = first; block < last; block++, sums += b->block_rows * LANES)
        switch (b->block_rows) {
        case 1: multiply_block(b, panel, block, sums, 1); break;
        case 2: multiply_block(b, panel, block, sums, 2); break;
        case 3: multiply_block(b, panel, block, sums, 3); break;
        case 4: multiply_block(b, panel, block, sums, 4); break;
        case 5: multiply_block(b, panel, block, sums, 5); break;
        default: multiply_block(b, panel, block, sums, 6); break;
        }
}

#if defined(QUIRE_AMX) && defined(__AMX_BF16__)

/* Tiles 0 to 3: sums of two blocks in two output tiles; 4, 5: the blocks' inputs; 6, 7: weights. */
INLINE void configure_tiles(const Blocks *b) {
    amx_config config = {.palette = 1};
    for (int i = 0; i < 8; i++) {
        config.row_bytes[i] = ROW_BYTES;
        config.rows[i] = i < 6 ? (uint8_t)b->block_rows : STEP / 2;
    }
    _tile_loadconfig(&config);
}

/* Products of one segment in two output tiles and one or two blocks, not yet added to their sums. */
typedef struct {
    float *sums[4];
    const vec *scales;
    int parts, is_first;
    float products[4][TILE_BYTES / 4] __attribute__((aligned(64)));
} Pending;

INLINE void fold_part(const Pending *from, int part, int64_t rows) {
    fold(from->sums[part], from->products[part], from->scales[part % 2], from->is_first, rows);
}

/* Multiplies one segment; meanwhile adds up the one before, which AMX leaves the time for. */
INLINE void multiply_segment(const Blocks *b, const char *inputs, const char *weights, int64_t steps,
                             const Pending *before, const int blocks) {
    int64_t rows = b->block_rows, next_block = block_bytes(b);
    int part = 0;
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (int64_t step = 1; step <= steps; step++, inputs += rows * ROW_BYTES, weights += 2 * TILE_BYTES) {
        _tile_loadd(6, weights, 64);
        _tile_loadd(7, weights + TILE_BYTES, 64);
        _tile_loadd(4, inputs, ROW_BYTES);
        if (blocks > 1) _tile_loadd(5, inputs + next_block, ROW_BYTES);
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 4, 7);
        if (blocks > 1) _tile_dpbf16ps(2, 5, 6);
        if (blocks > 1) _tile_dpbf16ps(3, 5, 7);
        for (; part * steps < before->parts * step; part++) fold_part(before, part, rows);
    }
}

static void multiply_blocks_amx(const Blocks *b, const Panel *panel, int64_t first, int64_t last,
                                float *sums) {
    Pending pending[2];
    int64_t stride = sums_stride(b), next = b->block_rows * LANES;
    int turn = 0;
    pending[1].parts = 0;
    for (int64_t block = first; block < last; block += 2, sums += 2 * next) {
        const char *inputs = b->inputs + block * block_bytes(b) + panel->step * step_bytes(b);
        int is_pair = block + 1 < last;
        for (int64_t segment = 0, step = 0; segment < panel->segments; segment++, turn = !turn) {
            int64_t steps = panel->ends[segment] - step;
            const char *from = inputs + step * step_bytes(b);
            const char *weights = panel->weights + step * 2 * TILE_BYTES;
            if (is_pair) multiply_segment(b, from, weights, steps, pending + !turn, 2);
            else multiply_segment(b, from, weights, steps, pending + !turn, 1);
            pending[turn].sums[0] = sums, pending[turn].sums[1] = sums + stride;
            pending[turn].sums[2] = sums + next, pending[turn].sums[3] = sums + next + stride;
            pending[turn].scales = panel->scales[segment];
            pending[turn].parts = is_pair ? 4 : 2;
            pending[turn].is_first = panel->step + segment == 0;
            _tile_stored(0, pending[turn].products[0], 64);
            _tile_stored(1, pending[turn].products[1], 64);
            if (is_pair) _tile_stored(2, pending[turn].products[2], 64);
            if (is_pair) _tile_stored(3, pending[turn].products[3], 64);
            step += steps;
        }
    }
    for (int part = 0; part < pending[!turn].parts; part++) fold_part(pending + !turn, part, b->block_rows);
}

INLINE void release_tiles(void) { _tile_release(); }

#else

INLINE void configure_tiles(const Blocks *b) {}

INLINE void release_tiles(void) {}

#define multiply_blocks_amx multiply_blocks

#endif

/* Output tiles `tile` to `last` of one chunk of rows. */
static void multiply_span(const Blocks *b, Panel *panel, int64_t tile, int64_t last, int64_t block,
                          float *sums) {
    const WeightOnly *p = b->p;
    int64_t last_block = least(block + b->chunk_blocks, b->blocks);
    for (int64_t step = 0; step < b->steps; step += CHUNK_STEPS)
        for (int64_t at = tile; at < last; at += b->panel_tiles) {
            unpack_panel(b, panel, at, step);
            float *to = sums + (at - tile) * sums_stride(b);
            if (p->with_amx) multiply_blocks_amx(b, panel, block, last_block, to);
            else multiply_blocks(b, panel, block, last_block, to);
        }
    int64_t row = block * b->block_rows, last_row = least(last_block * b->block_rows, p->rows);
    for (; row < last_row; row++, sums += LANES)
        for (int64_t at = tile; at < least(last, b->tiles); at++)
            write_outputs(p, row, at, load(DTYPE_FLOAT32, sums + (at - tile) * sums_stride(b), 0));
}

INLINE void multiply(const Blocks *b, float *sums) {
#pragma omp for schedule(static) collapse(2)
    for (int64_t block = 0; block < b->blocks; block++)
        for (int64_t step = 0; step < b->steps; step++) pack_inputs(b, block, step);
    if (b->p->with_amx) configure_tiles(b);
    Panel panel __attribute__((aligned(64)));
    int64_t first, last;
    team_share(quotient_up(b->tiles, b->panel_tiles), &first, &last);
    first *= b->panel_tiles, last *= b->panel_tiles;
    for (int64_t block = 0; block < b->blocks; block += b->chunk_blocks)
        for (int64_t tile = first; tile < last; tile += SPAN_TILES)
            multiply_span(b, &panel, tile, least(tile + SPAN_TILES, last), block, sums);
    if (b->p->with_amx) release_tiles();
}

INLINE int64_t whole_lines(int64_t bytes) { return (bytes + 63) / 64 * 64; }

static int multiply_bfloat16(const WeightOnly *p) {
    int is_streamed = p->rows <= (p->with_amx ? STREAMED_ROWS_AMX : STREAMED_ROWS);
    Blocks b = cut_rows(p);
    int64_t float_bytes = sizeof(float);
    int64_t inputs = whole_lines(is_streamed ? streamed_input_bytes(p) : b.blocks * block_bytes(&b));
    int64_t sums = SPAN_TILES * sums_stride(&b);
    int64_t more = is_streamed ? streamed_sums(p) : omp_get_num_threads() * sums;
    int64_t bytes = inputs + whole_lines(more * float_bytes);
    char *memory = bytes ? team_memory(bytes) : 0;
    if (bytes && !memory) return 1;
    b.inputs = memory;
    float *floats = (float *)(memory + inputs);
    if (is_streamed) stream(p, (uint16_t *)memory, floats);
    else multiply(&b, floats + omp_get_thread_num() * sums);
    if (bytes) free_team_memory(memory);
    return 0;
}

#else

static int multiply_bfloat16(const WeightOnly *p) { return 1; }

#endif

/* All of it; 0, or 1 where memory is short. */
static int weight_only_linear(const WeightOnly *p) { return p->with_dots ? multiply_bfloat16(p) : multiply_by_vectors(p); }

#endif
