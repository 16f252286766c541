/* Attention of rows of several queries over a paged KV cache, in float32 products: for caches of float32, and for CPUs
   that do not multiply bfloat16.

   A unit of work is a task of prefill.c, some queries of a row, with one KV head. Its queries, times the query heads of the
   KV head, are columns in blocks; keys come in chunks, widened once for all blocks. A lane belongs to a column from its
   scores to its output, and both products are of one kind:

       scores[key, column]  = sum over d of keys[key, d] * queries[d, column]
       output[d, column]   += sum over keys of values[key, d] * weights[key, column]

   The softmax runs along (Milakov and Gimelshein 2018; Dao et al. 2022). Chunks end at multiples of KEYS, so that what a
   query gets does not depend on how the prompt was cut into steps. */

#include <math.h>

#include "kv_cache.h"
#include "paged.h"
#include "registers.h"
#include "team.h"

#define KEYS 64                                     /* of a chunk */
#define COLUMNS (REGISTERS > 1 ? LANES : 2 * LANES) /* of a block */
#define VECTORS (COLUMNS / WIDTH)
#define ROWS (REGISTERS > 1 ? MOST_SUMS / VECTORS : 8) /* keys, or elements of a head, that are multiplied at a time */
#define MAX_HEAD_SIZE 512

/* A thread's memory. */
typedef struct {
    float *queries;          /* [blocks, D, COLUMNS] */
    float *sums;             /* [blocks, padded, COLUMNS]: the output before it is divided by the totals */
    float *largest, *totals; /* [blocks, COLUMNS] */
    float *keys, *values;    /* [KEYS, padded] */
    float *scores;           /* [KEYS, COLUMNS], then weights */
    int64_t padded;          /* the head size, filled up to whole ROWS */
} Scratch;

/* A unit of work. */
typedef struct {
    const PagedAttention *a;
    const int32_t *task; /* row, first token, tokens, position of the first one */
    int64_t kv_head, group, columns;
} Unit;

INLINE int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

INLINE int64_t whole(int64_t size, int64_t of) { return (size + of - 1) / of * of; }

INLINE int64_t scratch_floats(int64_t head_size, int64_t blocks) {
    int64_t padded = whole(head_size, ROWS);
    return blocks * COLUMNS * (head_size + padded + 2) + whole(KEYS, ROWS) * (2 * padded + COLUMNS);
}

static Scratch scratch_at(float *memory, int64_t head_size, int64_t blocks) {
    int64_t padded = whole(head_size, ROWS), keys = whole(KEYS, ROWS);
    Scratch s = {.queries = memory, .padded = padded};
    s.sums = s.queries + blocks * head_size * COLUMNS;
    s.largest = s.sums + blocks * padded * COLUMNS;
    s.totals = s.largest + blocks * COLUMNS;
    s.scores = s.totals + blocks * COLUMNS;
    s.keys = s.scores + keys * COLUMNS;
    s.values = s.keys + keys * padded;
    return s;
}

INLINE int64_t position_of(const Unit *u, int64_t column) {
    return u->task[3] + least(column, u->columns - 1) / u->group;
}

/* Where a column lies in a tensor of `stride` elements a token. */
INLINE int64_t offset_of(const Unit *u, int64_t column, int64_t stride) {
    int64_t token = u->task[1] + column / u->group, head = u->kv_head * u->group + column % u->group;
    return token * stride + head * u->a->head_size;
}

/* sums [ROWS, COLUMNS] = rows times columns [inputs, COLUMNS], added to what is there if `has_sums`. */
INLINE void multiply(const float *rows, int64_t row_stride, int64_t input_stride, const float *columns, int64_t inputs,
                     float *sums, const int has_sums) {
    reg c[ROWS][VECTORS] = {};
    if (has_sums)
#pragma GCC unroll 16
        for (int row = 0; row < ROWS; row++)
#pragma GCC unroll 4
            for (int i = 0; i < VECTORS; i++) c[row][i] = load_floats(sums + row * COLUMNS + i * WIDTH);
    for (int64_t k = 0; k < inputs; k++) {
        reg b[VECTORS];
#pragma GCC unroll 4
        for (int i = 0; i < VECTORS; i++) b[i] = load_floats(columns + k * COLUMNS + i * WIDTH);
#pragma GCC unroll 16
        for (int row = 0; row < ROWS; row++) {
            reg a = (reg){} + rows[row * row_stride + k * input_stride];
#pragma GCC unroll 4
            for (int i = 0; i < VECTORS; i++) c[row][i] += a * b[i];
        }
    }
#pragma GCC unroll 16
    for (int row = 0; row < ROWS; row++)
#pragma GCC unroll 4
        for (int i = 0; i < VECTORS; i++) store_floats(sums + row * COLUMNS + i * WIDTH, c[row][i]);
}

/* Widens a head's elements, with 0 up to `padded`. */
INLINE void widen_head(int dtype, const void *from, int64_t size, float *to, int64_t padded) {
    for (int64_t at = 0; at < padded; at += LANES)
        store_some(DTYPE_FLOAT32, to, at, at < size ? load_some(dtype, from, at, size) : splat(0), padded);
}

/* Transposes the queries of a block, and clears its results. */
static void begin_block(const Unit *u, const Scratch *s, int64_t block) {
    const PagedAttention *a = u->a;
    float head[MAX_HEAD_SIZE], *to = s->queries + block * a->head_size * COLUMNS;
    for (int64_t i = 0; i < COLUMNS; i++) {
        int64_t column = block * COLUMNS + i, size = a->head_size;
        if (column < u->columns)
            widen_head(a->dtype, element(a->dtype, a->query, offset_of(u, column, a->row_stride)), size, head, size);
        else memset(head, 0, sizeof(float) * size);
        for (int64_t d = 0; d < size; d++) to[d * COLUMNS + i] = head[d];
        s->largest[column] = -INFINITY;
        s->totals[column] = 0;
    }
    memset(s->sums + block * s->padded * COLUMNS, 0, sizeof(float) * s->padded * COLUMNS);
}

/* One head of a token of the cache, as `widen_head` gives it, multiplied by its scale where it has one. */
static void load_head(const PagedAttention *a, const char *token, int64_t head, float *to, int64_t padded) {
    widen_head(a->kept, token + head * head_pitch(a->kept, a->head_size), a->head_size, to, padded);
    if (!is_quantized(a->kept)) return;
    float scale = load_scale(token + scale_offset(a->kept, a->num_kv_heads, a->head_size, head));
    for (int64_t d = 0; d < a->head_size; d++) to[d] *= scale;
}

/* Widens `count` keys and values from `first` on. */
static void load_chunk(const Unit *u, const Scratch *s, int64_t first, int64_t count) {
    const PagedAttention *a = u->a;
    const PagedStep *step = a->step;
    const int32_t *table = step->block_tables + u->task[0] * step->table_stride;
    for (int64_t i = 0; i < count; i++) {
        int64_t token = first + i, slot = table[token / step->block_size] * step->block_size + token % step->block_size;
        const char *at = (const char *)a->cache + slot * token_pitch(a->kept, a->num_kv_heads, a->head_size);
        load_head(a, at, u->kv_head, s->keys + i * s->padded, s->padded);
        load_head(a, at, a->num_kv_heads + u->kv_head, s->values + i * s->padded, s->padded);
    }
    memset(s->keys + count * s->padded, 0, sizeof(float) * (whole(count, ROWS) - count) * s->padded);
}

/* Scales, caps and biases the scores of 16 columns; -inf where a column does not see a key. */
static void adjust_scores(const Unit *u, int64_t column, int64_t first, int64_t count, float *scores) {
    const PagedAttention *a = u->a;
    int32_t positions[LANES];
    float slopes[LANES];
    for (int64_t i = 0; i < LANES; i++) {
        positions[i] = (int32_t)position_of(u, column + i);
        slopes[i] = a->slopes ? a->slopes[u->kv_head * u->group + (column + i) % u->group] : 0;
    }
    veci position, nobody = (veci){} - 1;
    memcpy(&position, positions, sizeof position);
    for (int64_t i = 0; i < count; i++) {
        vec x = load(DTYPE_FLOAT32, scores, i * COLUMNS) * a->scale;
        veci distance = position - (int32_t)(first + i);
        if (a->logit_cap > 0)
            for (int lane = 0; lane < LANES; lane++) x[lane] = a->logit_cap * tanhf(x[lane] / a->logit_cap);
        x -= load(DTYPE_FLOAT32, slopes, 0) * __builtin_convertvector(distance, vec);
        veci is_seen = (distance >= 0) & (a->window ? distance < (int32_t)a->window : nobody);
        store(DTYPE_FLOAT32, scores, i * COLUMNS, blend(is_seen, x, splat(-INFINITY)));
    }
}

/* Makes weights of the scores of 16 columns. Returns what the sums so far are to be multiplied by. */
static void weigh(int64_t count, float *scores, float *largest, float *totals, float *fading) {
    vec before = load(DTYPE_FLOAT32, largest, 0), most = before, total = {};
    for (int64_t i = 0; i < count; i++) most = maximum(load(DTYPE_FLOAT32, scores, i * COLUMNS), most);
    store(DTYPE_FLOAT32, largest, 0, most);
    most = blend(most == -INFINITY, splat(0), most); /* nothing was seen: all weights become 0 */
    for (int64_t i = 0; i < count; i++) {
        vec weight = exponential(load(DTYPE_FLOAT32, scores, i * COLUMNS) - most);
        total += weight;
        store(DTYPE_FLOAT32, scores, i * COLUMNS, weight);
    }
    vec faded = exponential(before - most);
    store(DTYPE_FLOAT32, totals, 0, load(DTYPE_FLOAT32, totals, 0) * faded + total);
    store(DTYPE_FLOAT32, fading, 0, faded);
}

/* What `count` keys from `first` on give to a block. */
static void add_chunk(const Unit *u, const Scratch *s, int64_t block, int64_t first, int64_t count) {
    int64_t column = block * COLUMNS, last = position_of(u, column + COLUMNS - 1), window = u->a->window;
    if (first > last || (window && first + count <= position_of(u, column) - window + 1)) return;
    count = least(count, last + 1 - first);
    int64_t size = u->a->head_size;
    float *sums = s->sums + block * s->padded * COLUMNS, fading[COLUMNS];
    for (int64_t key = 0; key < count; key += ROWS)
        multiply(s->keys + key * s->padded, s->padded, 1, s->queries + block * size * COLUMNS, size,
                 s->scores + key * COLUMNS, 0);
    for (int64_t at = 0; at < COLUMNS; at += LANES) {
        adjust_scores(u, column + at, first, count, s->scores + at);
        weigh(count, s->scores + at, s->largest + column + at, s->totals + column + at, fading + at);
    }
    for (int64_t d = 0; d < s->padded; d++)
        for (int64_t at = 0; at < COLUMNS; at += LANES) {
            vec sum = load(DTYPE_FLOAT32, sums, d * COLUMNS + at);
            store(DTYPE_FLOAT32, sums, d * COLUMNS + at, sum * load(DTYPE_FLOAT32, fading, at));
        }
    for (int64_t d = 0; d < s->padded; d += ROWS)
        multiply(s->values + d, 1, s->padded, s->scores, count, sums + d * COLUMNS, 1);
}

/* Writes a block's output. */
static void end_block(const Unit *u, const Scratch *s, int64_t block) {
    const PagedAttention *a = u->a;
    const float *sums = s->sums + block * s->padded * COLUMNS;
    float head[MAX_HEAD_SIZE];
    for (int64_t i = 0; i < COLUMNS && block * COLUMNS + i < u->columns; i++) {
        int64_t column = block * COLUMNS + i, size = a->head_size;
        for (int64_t d = 0; d < size; d++) head[d] = sums[d * COLUMNS + i] / s->totals[column];
        void *to = (char *)a->output + offset_of(u, column, a->num_heads * size) * element_size(a->dtype);
        for (int64_t at = 0; at < size; at += LANES) store_some(a->dtype, to, at, load_some(DTYPE_FLOAT32, head, at, size), size);
    }
}

static void attend(const Unit *u, const Scratch *s) {
    int64_t blocks = whole(u->columns, COLUMNS) / COLUMNS, last = u->task[3] + u->task[2] - 1, window = u->a->window;
    for (int64_t block = 0; block < blocks; block++) begin_block(u, s, block);
    int64_t first = window && u->task[3] >= window ? u->task[3] - window + 1 : 0;
    for (int64_t end; first <= last; first = end) {
        end = least((first / KEYS + 1) * KEYS, last + 1);
        load_chunk(u, s, first, end - first);
        for (int64_t block = 0; block < blocks; block++) add_chunk(u, s, block, first, end - first);
    }
    for (int64_t block = 0; block < blocks; block++) end_block(u, s, block);
}

int paged_prefill_any(const PagedAttention *a) {
#ifdef __AVX512BF16__
    if (a->dtype == DTYPE_BFLOAT16) return paged_prefill(a);
#endif
    const PagedStep *step = a->step;
    int64_t group = a->num_heads / a->num_kv_heads, units = step->num_pieces * a->num_kv_heads;
    int64_t blocks = whole(step->most_tokens * group, COLUMNS) / COLUMNS;
    int64_t floats = whole(scratch_floats(a->head_size, blocks), LANES);
    float *memory = team_memory(omp_get_num_threads() * floats * (int64_t)sizeof *memory);
    if (!memory) return 1;
    Scratch scratch = scratch_at(memory + omp_get_thread_num() * floats, a->head_size, blocks);
#pragma omp for schedule(dynamic, 1) nowait
    for (int64_t unit = 0; unit < units; unit++) {
        const int32_t *task = step->pieces + 4 * (unit / a->num_kv_heads);
        attend(&(Unit){a, task, unit % a->num_kv_heads, group, task[2] * group}, &scratch);
    }
    free_team_memory(memory);
    return 0;
}
