/* y = (q_x . (q - 128)) * input_scale * scale + bias: 8-bit inputs, 8-bit weights in tiles of 16 outputs.

   The inputs are rounded first, into blocks of up to 16 rows that lie as the tiles of Intel AMX do: 64 bytes of
   each row, then the next 64. Then threads share the weights, two tiles of outputs at a time; while one pair is
   multiplied, the next is asked for. Products and sums are exact, modulo 2^32 until 128 * sum(q_x) is subtracted. */

#include "amx.h"
#include "team.h"
#include "vector.h"

/* What the CPU multiplies 8-bit integers with. */
enum { NO_INSTRUCTIONS = 0, DOT_PRODUCTS = 1, MATRIX_TILES = 2 };

#if defined(QUIRE_AMX) && defined(__AMX_INT8__) && defined(__AVX512VNNI__)
#define QUIRE_AMX_INT8 1
#endif

int quire_int8_instructions(void) {
#ifdef QUIRE_AMX_INT8
    if (amx_is_permitted()) return MATRIX_TILES;
#endif
#if defined(__AVX512VNNI__) && defined(__AVX512BW__) && defined(__AVX512VL__)
    return DOT_PRODUCTS;
#else
    return NO_INSTRUCTIONS;
#endif
}

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

#ifdef __AVX512VNNI__


#define STEP 64                     /* inputs, and bytes, of a row in a tile of AMX */
#define WORDS (STEP / 4)
#define TILE_BYTES (LANES * STEP)   /* one step of 16 outputs */
#define MAX_VNNI_ROWS 8             /* rows that dot products multiply at a time */
#define FEW_ROWS 4                  /* up to so many, dot products beat tiles */
#define CHUNK_BYTES (1 << 19)       /* rounded inputs that are multiplied with all weights before the next ones */
#define GROUP_BYTES (1 << 18)       /* weights that are multiplied with a block of rows before the next rows */
#define MAX_PAIRS 8                 /* of tiles among them */
#define CACHE_LINE 64

/* The inputs after rounding, [blocks][steps][height][STEP], and what scales them. */
typedef struct {
    int8_t *values;
    float *scales;
    int32_t *offsets;           /* 128 * the sum of a row's values */
    int64_t height, blocks, steps;
} Rounded;

/* What is asked for on the way: cache lines from `next` to `end`, `lines` at each step. */
typedef struct {
    const char *next, *end;
    int64_t lines;
} Ahead;

INLINE void ask(Ahead *ahead) {
    for (int64_t i = 0; i < ahead->lines && ahead->next < ahead->end; i++, ahead->next += CACHE_LINE)
        __builtin_prefetch(ahead->next, 0, 2);
}

/* How a row is divided by its scale, from the fastest to the most general. */
enum { BY_RECIPROCAL, BY_REMAINDERS, BY_DIVISION };

/* Divisors: a scale, the nearest float to its reciprocal, and what that lacks. */
typedef struct {
    __m512 scale, inverse, inverse_rest;
} Divisor;

/* x / scale rounded to float32, then to the nearest integer, ties to even, at most 32767 in magnitude. */
INLINE __m512i divided(int way, __m512 x, const Divisor *by) {
    const __m512 limit = _mm512_set1_ps(32767.0f);
    __m512 y = by->inverse, q;
    if (way == BY_RECIPROCAL) { /* for bfloat16 within the range of the row: the tests try them all */
        q = _mm512_fmadd_ps(x, y, _mm512_mul_ps(x, by->inverse_rest));
    } else if (way == BY_REMAINDERS) { /* correctly rounded (Markstein 1990): two corrections by exact remainders */
        __m512 bound = _mm512_mul_ps(by->scale, _mm512_set1_ps(256.0f)); /* no overflow, no change after rounding */
        x = _mm512_min_ps(_mm512_max_ps(x, _mm512_sub_ps(_mm512_setzero_ps(), bound)), bound);
        q = _mm512_mul_ps(x, y);
        q = _mm512_fmadd_ps(_mm512_fnmadd_ps(q, by->scale, x), y, q);
        q = _mm512_fmadd_ps(_mm512_fnmadd_ps(q, by->scale, x), y, q);
    } else { /* NaN, infinity over infinity among them, becomes 0 */
        q = _mm512_div_ps(x, by->scale);
        q = _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(q, q, _CMP_ORD_Q), q);
        q = _mm512_min_ps(_mm512_max_ps(q, _mm512_sub_ps(_mm512_setzero_ps(), limit)), limit);
    }
    return _mm512_cvtps_epi32(q);
}

/* The bits of the largest magnitude in float32; those of NaN are above all others. */
INLINE int32_t largest_bits(int dtype, const void *row, int64_t size) {
    const __m512i magnitude = _mm512_set1_epi32(0x7fffffff), half_magnitude = _mm512_set1_epi16(0x7fff);
    __m512i largest = _mm512_setzero_si512(), halves = largest;
    int64_t at = 0;
    if (dtype == DTYPE_BFLOAT16)
        for (; at + 2 * LANES <= size; at += 2 * LANES) {
            __m512i x = _mm512_loadu_si512(element(dtype, row, at));
            halves = _mm512_max_epi16(halves, _mm512_and_si512(x, half_magnitude));
        }
    largest = _mm512_max_epi32(_mm512_slli_epi32(halves, 16), _mm512_maskz_mov_epi16(0xaaaaaaaa, halves));
    for (; at < size; at += LANES)
        largest = _mm512_max_epi32(largest, _mm512_and_si512((__m512i)load_some(dtype, row, at, size), magnitude));
    return _mm512_reduce_max_epi32(largest);
}

/* Inputs of a step, the even ones of each 32 apart from the odd ones; `left` is how many there are. */
INLINE void load_step(int dtype, const void *from, int64_t left, __m512 even[2], __m512 odd[2]) {
    if (dtype == DTYPE_BFLOAT16) {
        for (int i = 0; i < 2; i++, left -= 32) {
            __mmask32 some = left >= 32 ? 0xffffffff : left > 0 ? (1u << left) - 1 : 0;
            __m512i both = _mm512_maskz_loadu_epi16(some, (const char *)from + 64 * i);
            even[i] = (__m512)_mm512_slli_epi32(both, 16);
            odd[i] = (__m512)_mm512_and_si512(both, _mm512_set1_epi32((int32_t)0xffff0000));
        }
        return;
    }
    const __m512i evens = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
    const __m512i odds = _mm512_or_si512(evens, _mm512_set1_epi32(1));
    for (int i = 0; i < 2; i++, left -= 32) {
        __m512 low = (__m512)load_some(dtype, from, 32 * i, left > 0 ? 32 * i + left : 32 * i);
        __m512 high = (__m512)load_some(dtype, from, 32 * i + 16, left > 16 ? 32 * i + left : 32 * i + 16);
        even[i] = _mm512_permutex2var_ps(low, evens, high);
        odd[i] = _mm512_permutex2var_ps(low, odds, high);
    }
}

/* Rounds a step of a row; in words of four inputs in the order 0, 2, 1, 3 (see quire.ops.tiles). */
INLINE __m512i round_step(int dtype, int way, const void *from, int64_t left, const Divisor *by) {
    const __m512i interleaved = _mm512_broadcast_i32x4(_mm_setr_epi8(0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15));
    const __m512i halves = _mm512_setr_epi64(0, 2, 4, 6, 1, 3, 5, 7);
    __m512 even[2], odd[2];
    load_step(dtype, from, left, even, odd);
    __m512i first = _mm512_packs_epi32(divided(way, even[0], by), divided(way, odd[0], by));
    __m512i second = _mm512_packs_epi32(divided(way, even[1], by), divided(way, odd[1], by));
    __m512i octets = _mm512_shuffle_epi8(_mm512_packs_epi16(first, second), interleaved);
    return _mm512_permutexvar_epi64(halves, octets);
}

/* Rounds a row; returns the sum of its integers. */
INLINE int32_t round_row(int dtype, int way, const void *row, int64_t size, float scale, int8_t *to, int64_t stride) {
    const __m512i ones = _mm512_set1_epi8(1);
    float inverse = 1.0f / scale;
    Divisor by = {_mm512_set1_ps(scale), _mm512_set1_ps(inverse), _mm512_set1_ps(fmaf(-scale, inverse, 1.0f) * inverse)};
    __m512i sum = _mm512_setzero_si512();
    for (int64_t at = 0; at < size; at += STEP, to += stride) {
        const void *from = element(dtype, row, at);
        __m512i octets = size - at >= STEP ? round_step(dtype, way, from, STEP, &by) : round_step(dtype, way, from, size - at, &by);
        sum = _mm512_dpbusd_epi32(sum, ones, octets);
        _mm512_storeu_si512(to, octets);
    }
    return _mm512_reduce_add_epi32(sum);
}

INLINE void round_rows(int dtype, const W8A8Linear *p, const Rounded *rounded, int64_t first, int64_t last) {
    for (int64_t r = first; r < last; r++) {
        const void *row = element(dtype, p->x, r * p->stride);
        int32_t bits = largest_bits(dtype, row, p->inputs), sum;
        float largest, scale;
        memcpy(&largest, &bits, sizeof bits);
        if (p->input_scale) scale = *p->input_scale;
        else scale = largest == 0 ? 1.0f : largest / 127.5f;
        int64_t block = r / rounded->height, stride = rounded->height * STEP;
        int8_t *to = rounded->values + block * rounded->steps * stride + r % rounded->height * STEP;
        int usual = scale > 0x1p-100f && scale < 0x1p+100f; /* no remainder under- or overflows */
        if (!usual) sum = round_row(dtype, BY_DIVISION, row, p->inputs, scale, to, stride);
        else if (p->input_scale || dtype != DTYPE_BFLOAT16)
            sum = round_row(dtype, BY_REMAINDERS, row, p->inputs, scale, to, stride);
        else sum = round_row(dtype, BY_RECIPROCAL, row, p->inputs, scale, to, stride);
        rounded->offsets[r] = (int32_t)(128u * (uint32_t)sum);
        rounded->scales[r] = largest == largest ? scale : largest;
    }
}

/* Rows of products that are still to be scaled and written. */
typedef struct {
    vec scales[2], biases[2];
    const int32_t (*products)[2 * LANES];
    const float *input_scales;
    const int32_t *offsets;
    char *out;
    int64_t rows, columns, stride;
    int dtype;
} Pending;

/* Two tiles of outputs (or one, the last). */
typedef struct {
    uint8_t tails[2][TILE_BYTES]; /* a last, partial step, filled up */
    Pending results;              /* as far as it is the same for all rows */
    const uint8_t *weights[2];
    char *out;                    /* of row 0 */
    int64_t columns, words;
} Pair;

/* What a thread works with: products of two blocks in turn, one to be written while the other is filled. */
typedef struct {
    int32_t products[2][2 * LANES][2 * LANES];
    Pair pairs[MAX_PAIRS];
    Pending pending;
    Ahead ahead;
    int turn;
} Workspace;

/* 16 products, scaled; the addition has a rounding of its own, as the reference's. */
INLINE vec scaled(const int32_t *products, int32_t offset, float input_scale, vec scale, vec bias) {
    __m512i exact = _mm512_sub_epi32(_mm512_load_si512(products), _mm512_set1_epi32(offset));
    vec y = (vec)_mm512_cvtepi32_ps(exact) * input_scale * scale;
    return (vec)_mm512_add_round_ps((__m512)y, (__m512)bias, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}

INLINE void store_pair(int dtype, void *to, vec low, vec high, int64_t columns) {
#ifdef __AVX512BF16__
    if (dtype == DTYPE_BFLOAT16) {
        __mmask32 some = columns >= 2 * LANES ? 0xffffffff : (1u << columns) - 1;
        _mm512_mask_storeu_epi16(to, some, (__m512i)_mm512_cvtne2ps_pbh((__m512)high, (__m512)low));
        return;
    }
#endif
    store_some(dtype, to, 0, low, columns);
    if (columns > LANES) store_some(dtype, to, LANES, high, columns);
}

/* Writes the next rows of a block. */
INLINE void write_rows(Pending *block, int64_t rows) {
    if (rows > block->rows) rows = block->rows;
    block->rows -= rows;
    for (; rows > 0; rows--, block->products++, block->input_scales++, block->offsets++, block->out += block->stride) {
        const int32_t *products = *block->products;
        float input_scale = *block->input_scales;
        int32_t offset = *block->offsets;
        vec low = scaled(products, offset, input_scale, block->scales[0], block->biases[0]);
        vec high = scaled(products + LANES, offset, input_scale, block->scales[1], block->biases[1]);
        if (block->dtype == DTYPE_BFLOAT16) store_pair(DTYPE_BFLOAT16, block->out, low, high, block->columns);
        else store_pair(DTYPE_FLOAT32, block->out, low, high, block->columns);
    }
}

/* products = values . q for R rows and C tiles. */
INLINE void multiply_dot(int R, int C, const int8_t *values, int64_t steps, const Pair *pair, Ahead *ahead,
                         int32_t (*products)[2 * LANES]) {
    __m512i sums[MAX_VNNI_ROWS][2];
#pragma GCC unroll 8
    for (int r = 0; r < R; r++)
        for (int c = 0; c < C; c++) sums[r][c] = _mm512_setzero_si512();
    const uint8_t *w0 = pair->weights[0], *w1 = pair->weights[1];
    for (int64_t step = 0; step < steps; step++, values += R * STEP) {
        ask(ahead);
        int64_t words = pair->words - step * WORDS < WORDS ? pair->words - step * WORDS : WORDS;
        for (int64_t word = 0; word < words; word++, w0 += STEP, w1 += STEP) {
            __m512i weights[2] = {_mm512_loadu_si512(w0), C > 1 ? _mm512_loadu_si512(w1) : _mm512_setzero_si512()};
#pragma GCC unroll 8
            for (int r = 0; r < R; r++) {
                int32_t four;
                memcpy(&four, values + r * STEP + word * 4, 4);
                for (int c = 0; c < C; c++)
                    sums[r][c] = _mm512_dpbusd_epi32(sums[r][c], weights[c], _mm512_set1_epi32(four));
            }
        }
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; r++)
        for (int c = 0; c < C; c++) _mm512_store_si512(products[r] + c * LANES, sums[r][c]);
}

INLINE void multiply_dots(int C, int64_t height, const int8_t *values, int64_t steps, const Pair *pair, Ahead *ahead,
                          int32_t (*products)[2 * LANES]) {
    switch (height) {
    case 1: multiply_dot(1, C, values, steps, pair, ahead, products); break;
    case 2: multiply_dot(2, C, values, steps, pair, ahead, products); break;
    case 3: multiply_dot(3, C, values, steps, pair, ahead, products); break;
    case 4: multiply_dot(4, C, values, steps, pair, ahead, products); break;
    case 5: multiply_dot(5, C, values, steps, pair, ahead, products); break;
    case 6: multiply_dot(6, C, values, steps, pair, ahead, products); break;
    case 7: multiply_dot(7, C, values, steps, pair, ahead, products); break;
    default: multiply_dot(8, C, values, steps, pair, ahead, products);
    }
}

#ifdef QUIRE_AMX_INT8

/* Tiles 0 .. 3 are products, 4 and 5 values of two blocks, 6 and 7 weights of two tiles of outputs. */
INLINE void configure_tiles(int64_t height) {
    amx_config config = {.palette = 1};
    for (int i = 0; i < 8; i++) {
        config.row_bytes[i] = STEP;
        config.rows[i] = i < 6 ? height : LANES;
    }
    _tile_loadconfig(&config);
}

INLINE void multiply_step(int R, int C, const int8_t *a0, const int8_t *a1, const uint8_t *b0, const uint8_t *b1) {
    _tile_loadd(6, b0, STEP);
    _tile_loadd(4, a0, STEP);
    _tile_dpbsud(0, 4, 6);
    if (C > 1) {
        _tile_loadd(7, b1, STEP);
        _tile_dpbsud(1, 4, 7);
    }
    if (R > 1) {
        _tile_loadd(5, a1, STEP);
        _tile_dpbsud(2, 5, 6);
        if (C > 1) _tile_dpbsud(3, 5, 7);
    }
}

/* The same for R blocks of rows; the products before are written meanwhile. */
INLINE void multiply_tiles(int R, int C, int64_t height, const int8_t *values, int64_t steps, const Pair *pair,
                           Ahead *ahead, Pending *before, int32_t (*products)[2 * LANES]) {
    int64_t block = height * STEP, whole = pair->words / WORDS, rows = (before->rows + steps - 1) / steps;
    const int8_t *a0 = values, *a1 = values + steps * block;
    const uint8_t *b0 = pair->weights[0], *b1 = pair->weights[1];
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (int64_t step = 0; step < whole; step++, a0 += block, a1 += block, b0 += TILE_BYTES, b1 += TILE_BYTES) {
        ask(ahead);
        multiply_step(R, C, a0, a1, b0, b1);
        write_rows(before, rows);
    }
    if (whole < steps) multiply_step(R, C, a0, a1, pair->tails[0], pair->tails[1]);
    _tile_stored(0, products[0], sizeof *products);
    if (C > 1) _tile_stored(1, products[0] + LANES, sizeof *products);
    if (R > 1) {
        _tile_stored(2, products[height], sizeof *products);
        if (C > 1) _tile_stored(3, products[height] + LANES, sizeof *products);
    }
    __asm__ volatile("" ::: "memory");
}

#endif

INLINE void prepare_pair(const W8A8Linear *p, int64_t column, Pair *pair) {
    int64_t words = p->inputs / 4, tile_bytes = words * STEP, whole = words / WORDS * TILE_BYTES;
    int64_t columns = p->outputs - column < 2 * LANES ? p->outputs - column : 2 * LANES;
    pair->columns = columns;
    pair->words = words;
    pair->out = (char *)p->out + column * element_size(p->dtype);
    pair->results = (Pending){.columns = columns, .stride = p->outputs * element_size(p->dtype), .dtype = p->dtype};
    for (int64_t c = 0; c * LANES < columns; c++) {
        int64_t first = column + c * LANES, last = column + columns;
        pair->weights[c] = p->weight + first / LANES * tile_bytes;
        memcpy(pair->tails[c], pair->weights[c] + whole, tile_bytes - whole);
        pair->results.scales[c] = load_some(DTYPE_FLOAT32, p->scales, first, last);
        if (!p->bias) continue;
        if (p->dtype == DTYPE_BFLOAT16) pair->results.biases[c] = load_some(DTYPE_BFLOAT16, p->bias, first, last);
        else pair->results.biases[c] = load_some(DTYPE_FLOAT32, p->bias, first, last);
    }
}

/* Multiplies one or two blocks of rows with a pair; leaves the products pending. */
INLINE void multiply_blocks(const W8A8Linear *p, const Rounded *rounded, int tiles, int64_t block, int64_t blocks,
                            Pair *pair, Workspace *work) {
    int64_t height = rounded->height, steps = rounded->steps, is_pair = pair->columns > LANES;
    const int8_t *values = rounded->values + block * steps * height * STEP;
    int32_t (*products)[2 * LANES] = work->products[work->turn ^= 1];
    int64_t row = block * height, left = p->rows - row, rows = left < blocks * height ? left : blocks * height;
    Pending *before = &work->pending;
    Ahead *ahead = &work->ahead;
    for (int64_t r = row; r < row + rows; r++) __builtin_prefetch(pair->out + r * pair->results.stride, 1);
#ifdef QUIRE_AMX_INT8
    if (tiles) {
        if (blocks > 1 && is_pair) multiply_tiles(2, 2, height, values, steps, pair, ahead, before, products);
        else if (is_pair) multiply_tiles(1, 2, height, values, steps, pair, ahead, before, products);
        else if (blocks > 1) multiply_tiles(2, 1, height, values, steps, pair, ahead, before, products);
        else multiply_tiles(1, 1, height, values, steps, pair, ahead, before, products);
    }
#endif
    if (!tiles && is_pair) multiply_dots(2, height, values, steps, pair, ahead, products);
    else if (!tiles) multiply_dots(1, height, values, steps, pair, ahead, products);
    write_rows(before, before->rows);
    *before = pair->results;
    before->products = (const int32_t (*)[2 * LANES])products;
    before->rows = rows;
    before->input_scales = rounded->scales + row;
    before->offsets = rounded->offsets + row;
    before->out = pair->out + row * before->stride;
}

/* Tasks are pairs of tiles for a chunk of rows, all pairs for the first chunk first. */
static void run_tasks(const W8A8Linear *p, const Rounded *rounded, int tiles, int64_t chunk, int64_t first, int64_t last) {
    Workspace work __attribute__((aligned(64)));
    int64_t tile_bytes = p->inputs * LANES, pairs = (p->outputs + 2 * LANES - 1) / (2 * LANES);
    int64_t most = GROUP_BYTES / (2 * tile_bytes), together = tiles ? 2 : 1;
    const char *weights_end = (const char *)p->weight + (p->outputs + LANES - 1) / LANES * tile_bytes;
    most = most < 1 ? 1 : most > MAX_PAIRS ? MAX_PAIRS : most;
    memset(&work, 0, sizeof work);
    for (int64_t task = first, group; task < last; task += group) {
        int64_t pair = task % pairs, start = task / pairs * chunk, left = rounded->blocks - start;
        int64_t end = start + (left < chunk ? left : chunk), turns = (end - start + together - 1) / together;
        group = pairs - pair < last - task ? pairs - pair : last - task;
        if (turns == 1) group = 1;
        else if (group > most) group = most;
        for (int64_t i = 0; i < group; i++) prepare_pair(p, (pair + i) * 2 * LANES, &work.pairs[i]);
        work.ahead.next = (const char *)p->weight + (pair + group) * 2 * tile_bytes;
        work.ahead.end = work.ahead.next + group * 2 * tile_bytes;
        if (work.ahead.end > weights_end) work.ahead.end = weights_end;
        work.ahead.lines = task + group == last ? 0 : (2 * LANES + turns - 1) / turns;
        __asm__ volatile("" ::: "memory");
        for (int64_t block = start; block < end; block += together)
            for (int64_t i = 0; i < group; i++)
                multiply_blocks(p, rounded, tiles, block, end - block < together ? end - block : together, &work.pairs[i], &work);
    }
    write_rows(&work.pending, work.pending.rows);
}

static int w8a8_linear(const W8A8Linear *p) {
    int tiles = p->instructions == MATRIX_TILES && p->rows > FEW_ROWS;
    int64_t most = tiles ? LANES : MAX_VNNI_ROWS, blocks = (p->rows + most - 1) / most;
    if (!blocks) return 0;
    int64_t height = (p->rows + blocks - 1) / blocks, steps = (p->inputs + STEP - 1) / STEP;
    int64_t value_bytes = blocks * height * steps * STEP;
    int8_t *values = team_memory(value_bytes + p->rows * (int64_t)(sizeof(float) + sizeof(int32_t)));
    if (!values) return 1;
    float *scales = (float *)(values + value_bytes);
    Rounded rounded = {values, scales, (int32_t *)(scales + p->rows), height, blocks, steps};
    int64_t chunk = CHUNK_BYTES / (steps * STEP * height) + 1;
    chunk += chunk & 1;
    int64_t tasks = (blocks + chunk - 1) / chunk * ((p->outputs + 2 * LANES - 1) / (2 * LANES)), first, last;
    team_share(p->rows, &first, &last);
    if (p->dtype == DTYPE_BFLOAT16) round_rows(DTYPE_BFLOAT16, p, &rounded, first, last);
    else round_rows(DTYPE_FLOAT32, p, &rounded, first, last);
#pragma omp barrier
#ifdef QUIRE_AMX_INT8
    if (tiles) configure_tiles(height);
#endif
    team_share(tasks, &first, &last);
    run_tasks(p, &rounded, tiles, chunk, first, last);
#ifdef QUIRE_AMX_INT8
    if (tiles) _tile_release();
#endif
    free_team_memory(values);
    return 0;
}

#else

static int w8a8_linear(const W8A8Linear *p) { return 1; }

#endif

QUIRE_KERNEL(w8a8_linear, W8A8Linear, w8a8_linear, p->rows *p->inputs * p->outputs < 1 << 18)
