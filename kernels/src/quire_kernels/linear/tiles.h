/* What products by AMX share: tiles, and sums that are written while the next are made. */

#ifndef QUIRE_LINEAR_TILES_H
#define QUIRE_LINEAR_TILES_H

#include "amx.h"
#include "linear.h"

#define BLOCK_ROWS 16
#define TILE_FLOATS 256
#define WRITES_A_STEP 2

/* Tiles 0 to 3: sums; 4, 5: inputs; 6, 7: weights. */
INLINE void configure_tiles(int64_t rows) {
    amx_config config = {.palette = 1};
    for (int i = 0; i < 8; i++) {
        config.rows[i] = i > 5 ? STEP / 2 : rows;
        config.row_bytes[i] = 64;
    }
    __asm__ volatile("" : : "r"(&config) : "memory"); /* GCC 12 does not know that all of it is read */
    _tile_loadconfig(&config);
}

/* A tile of sums: what has come so far, or 0. */
#define BEGIN_SUMS(tile, has_sums, from) \
    do { \
        if (has_sums) _tile_loadd(tile, from, 64); \
        else _tile_zero(tile); \
    } while (0)

/* Sums that wait to be written: while the AMX unit multiplies, other units have the time. */
typedef struct {
    const float *sums;  /* [blocks][2 halves][16][16] */
    const float *gates; /* the same, where outputs are gated; else null */
    int64_t panel, block_rows;
    int64_t first, last; /* the first block's row, and the last one that a block may begin at */
    int64_t left, block, row; /* rows to be written yet, and the next one's place */
} Waiting;

INLINE Sums sums_at(const float *sums, int64_t at) {
    return (Sums){load(DTYPE_FLOAT32, sums, at), load(DTYPE_FLOAT32, sums, at + TILE_FLOATS)};
}

INLINE void write_row(const Linear *p, Waiting *w) {
    int64_t at = w->block * 2 * TILE_FLOATS + w->row * LANES, row = least(w->first + w->block * w->block_rows, w->last) + w->row;
    if (w->gates) write_gated(p, row, w->panel, sums_at(w->gates, at), sums_at(w->sums, at));
    else write_sums(p, row, w->panel, sums_at(w->sums, at));
    w->left--;
    if (++w->row == w->block_rows) w->row = 0, w->block++;
}

INLINE void write_some(const Linear *p, Waiting *w) {
    for (int i = 0; i < WRITES_A_STEP && w->left > 0; i++) write_row(p, w);
}

INLINE void write_rest(const Linear *p, Waiting *w) {
    while (w->left > 0) write_row(p, w);
}

#endif
