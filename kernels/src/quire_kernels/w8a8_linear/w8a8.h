/* What the parts of the 8-bit linear share. */

#ifndef QUIRE_W8A8_H
#define QUIRE_W8A8_H

#include "amx.h"
#include "vector.h"

#if defined(QUIRE_AMX) && defined(__AMX_INT8__) && defined(__AVX512VNNI__)
#define QUIRE_AMX_INT8 1
#endif

typedef struct {
    const void *x;             /* [rows, inputs], `stride` elements from row to row */
    const uint8_t *weight;     /* [tiles, inputs / 4, 16, 4] */
    const float *scales;       /* [outputs] */
    const float *input_scale;  /* [1], or null: by row */
    const void *bias;          /* [outputs] or null */
    void *out;                 /* [rows, outputs] */
    int64_t rows, inputs, outputs, stride;
    int32_t dtype, threads, instructions;
} W8A8Linear;

#define STEP 64                     /* inputs, and bytes, of a row in a tile of AMX */
#define WORDS (STEP / 4)
#define TILE_BYTES (LANES * STEP)   /* one step of 16 outputs */

/* The inputs after rounding, [blocks][steps][height][STEP], and what scales them. */
typedef struct {
    int8_t *values;
    float *scales;
    int32_t *offsets;           /* 128 * the sum of a row's values */
    int64_t height, blocks, steps;
} Rounded;

#endif
