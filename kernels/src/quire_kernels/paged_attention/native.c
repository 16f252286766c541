/* Attention of single queries over a paged KV cache that is read where it lies.

   A cache is [slots, 2 * K, D]: per token the K key heads, then the K value heads. Work comes as tasks,
   pieces of a row's context; a row of one piece is written to the output at once, the pieces of the
   others leave a partial result (largest score, sum of weights, weighted values) that is merged at the
   end (flash-decoding; Dao et al. 2023). Scores, softmax and sums are float32. */

#include "paged.h"
#include "team.h"
#include "vector.h"

#define TILE 64                    /* tokens whose scores are held at a time */
#define CACHE_LINE 64
#define MAX_VECTORS 32             /* head sizes up to 512 */

/* What is decoded: of PagedAttention and its step. */
typedef struct {
    const void *query, *cache;
    const int32_t *block_tables, *seq_lens, *tasks, *merges;
    const float *slopes;
    float *partials;
    void *output;
    int64_t row_stride, table_stride, num_tasks, num_merges;
    int64_t num_heads, num_kv_heads, head_size, block_size, window;
    float scale, logit_cap;
    int32_t dtype;
} PagedDecode;

/* Tokens of a row's context, in order. */
typedef struct {
    const int32_t *table;
    int64_t block_size, block, offset, left;
} Cursor;

INLINE Cursor cursor_at(const PagedDecode *p, const int32_t *task, int64_t skipped) {
    int64_t first = task[1], visible = p->window ? p->seq_lens[task[0]] - p->window : 0;
    first = (first > visible ? first : visible) + skipped;
    return (Cursor){p->block_tables + task[0] * p->table_stride, p->block_size, first / p->block_size,
                    first % p->block_size, task[2] - first};
}

INLINE int64_t next_slot(Cursor *cursor) {
    int64_t slot = cursor->table[cursor->block] * cursor->block_size + cursor->offset;
    if (++cursor->offset == cursor->block_size) {
        cursor->offset = 0;
        cursor->block++;
    }
    cursor->left--;
    return slot;
}

typedef struct {
    int64_t slots[TILE], ahead[TILE]; /* ahead: of the tokens that come TILE tokens later, to be prefetched */
    int64_t count, first_distance;    /* key minus query position of the first token */
} Tile;

/* Asks for one head of a token: a token's heads are read at different times, in strides that no CPU foresees. */
INLINE void prefetch(const void *head, int64_t bytes) {
    for (int64_t at = 0; at < bytes; at += CACHE_LINE) __builtin_prefetch((const char *)head + at, 0, 2);
}

/* scores[g][t] = query[g] . key[t] for `heads` <= 4 query heads of a KV head, 16 tokens at a time.
   `first`: these are the KV head's first query heads, and keys of later tokens are asked for on the way. */
INLINE void tile_scores(int dtype, int vectors, int aligned, int heads, int first, const PagedDecode *p,
                        const float *query, const Tile *tile, int64_t kv_head, float (*scores)[TILE]) {
    int64_t padded = (int64_t)vectors * LANES, size = aligned ? padded : p->head_size;
    int64_t width = 2 * p->num_kv_heads * size;
    for (int64_t start = 0; start < tile->count; start += LANES) {
        int64_t some = tile->count - start < LANES ? tile->count - start : LANES;
        vec products[4][LANES];
        for (int64_t t = 0; t < LANES; t++) {
            int64_t slot = tile->slots[start + (t < some ? t : 0)]; /* past the end: the first, unused */
            const void *key = element(dtype, p->cache, slot * width + kv_head * size);
            if (first && t < some)
                prefetch(element(dtype, p->cache, tile->ahead[start + t] * width + kv_head * size),
                         size * element_size(dtype));
            vec sums[4] = {};
#pragma GCC unroll 16
            for (int v = 0; v < vectors; v++) {
                vec k = load_some(dtype, key, v * LANES, size);
#pragma GCC unroll 4
                for (int g = 0; g < heads; g++)
                    sums[g] += k * load(DTYPE_FLOAT32, query, g * padded + v * LANES);
            }
#pragma GCC unroll 4
            for (int g = 0; g < heads; g++) products[g][t] = sums[g];
        }
#pragma GCC unroll 4
        for (int g = 0; g < heads; g++) store(DTYPE_FLOAT32, scores[g], start, sum_rows(products[g]));
    }
}

/* values[g] = values[g] * scales[g] + sum over t of weights[g][t] * value[t], for `heads` query heads. */
INLINE void tile_values(int dtype, int vectors, int aligned, int heads, int first, const PagedDecode *p,
                        const Tile *tile, int64_t kv_head, const float (*weights)[TILE], const float *scales, float *values) {
    int64_t padded = (int64_t)vectors * LANES, size = aligned ? padded : p->head_size;
    int64_t width = 2 * p->num_kv_heads * size;
    vec sums[4][MAX_VECTORS];
#pragma GCC unroll 4
    for (int g = 0; g < heads; g++)
#pragma GCC unroll 16
        for (int v = 0; v < vectors; v++)
            sums[g][v] = load(DTYPE_FLOAT32, values, g * padded + v * LANES) * scales[g];
    for (int64_t t = 0; t < tile->count; t++) {
        int64_t at = tile->slots[t] * width + (p->num_kv_heads + kv_head) * size;
        const void *value = element(dtype, p->cache, at);
        if (first) {
            int64_t later = tile->ahead[t] * width + (p->num_kv_heads + kv_head) * size;
            prefetch(element(dtype, p->cache, later), size * element_size(dtype));
        }
#pragma GCC unroll 16
        for (int v = 0; v < vectors; v++) {
            vec x = load_some(dtype, value, v * LANES, size);
#pragma GCC unroll 4
            for (int g = 0; g < heads; g++) sums[g][v] += x * weights[g][t];
        }
    }
#pragma GCC unroll 4
    for (int g = 0; g < heads; g++)
#pragma GCC unroll 16
        for (int v = 0; v < vectors; v++)
            store(DTYPE_FLOAT32, values, g * padded + v * LANES, sums[g][v]);
}

#define SCORES(heads) tile_scores(dtype, vectors, aligned, heads, g == 0, p, query + g * padded, tile, kv_head, scores + g)

INLINE void all_scores(int dtype, int vectors, int aligned, int step, const PagedDecode *p, const Tile *tile, int64_t kv_head,
                       int64_t group, const float *query, float (*scores)[TILE]) {
    int64_t padded = (int64_t)vectors * LANES, g = 0;
    for (; g + step <= group; g += step) SCORES(step);
    if (step > 2 && group - g == 3) SCORES(3);
    else if (step > 2 && group - g == 2) SCORES(2);
    else
        for (; g < group; g++) SCORES(1);
}

#define VALUES(heads) \
    tile_values(dtype, vectors, aligned, heads, g == 0, p, tile, kv_head, weights + g, scales + g, values + g * padded)

INLINE void all_values(int dtype, int vectors, int aligned, int step, const PagedDecode *p, const Tile *tile, int64_t kv_head,
                       int64_t group, const float (*weights)[TILE], const float *scales, float *values) {
    int64_t padded = (int64_t)vectors * LANES, g = 0;
    for (; g + step <= group; g += step) VALUES(step);
    if (step > 2 && group - g == 3) VALUES(3);
    else if (step > 2 && group - g == 2) VALUES(2);
    else
        for (; g < group; g++) VALUES(1);
}

/* Scale, bias and cap the scores of one head; then weights = e^(score - largest). Returns the new largest. */
INLINE float tile_weights(const PagedDecode *p, const Tile *tile, int64_t head, float *scores,
                          float largest, float *total, float *scale) {
    vec highest = splat(largest);
    for (int64_t start = 0; start < tile->count; start += LANES) {
        vec x = load(DTYPE_FLOAT32, scores, start) * p->scale;
        if (p->logit_cap > 0)
            for (int lane = 0; lane < LANES; lane++) x[lane] = p->logit_cap * tanhf(x[lane] / p->logit_cap);
        if (p->slopes)
            for (int lane = 0; lane < LANES; lane++)
                x[lane] += p->slopes[head] * (float)(tile->first_distance + start + lane);
        for (int64_t lane = tile->count - start; lane < LANES; lane++) x[lane] = -INFINITY;
        highest = maximum(x, highest);
        store(DTYPE_FLOAT32, scores, start, x);
    }
    float new_largest = max_lanes(highest);
    vec sum = {};
    for (int64_t start = 0; start < tile->count; start += LANES) {
        vec weights = exponential(load(DTYPE_FLOAT32, scores, start) - new_largest);
        sum += weights;
        store(DTYPE_FLOAT32, scores, start, weights);
    }
    *scale = largest == -INFINITY ? 0.0f : expf(largest - new_largest);
    *total = *total * *scale + sum_lanes(sum);
    return new_largest;
}

/* One task: `values` [H, padded], `totals` and `largest` [H] are its result. `next`: this thread's next task, or
   null. `is_first`: nobody has asked for its first tokens yet. */
INLINE void run_task(int dtype, int vectors, int aligned, int step, const PagedDecode *p, const int32_t *task,
                     const int32_t *next, int is_first, float *query, float *values, float *totals,
                     float *largest) {
    int64_t row = task[0], size = p->head_size, width = 2 * p->num_kv_heads * size;
    int64_t padded = (int64_t)vectors * LANES, group = p->num_heads / p->num_kv_heads;
    for (int64_t head = 0; head < p->num_heads; head++) {
        const void *from = element(dtype, p->query, row * p->row_stride + head * size);
        for (int v = 0; v < vectors; v++)
            store(DTYPE_FLOAT32, query, head * padded + v * LANES, load_some(dtype, from, v * LANES, size));
        totals[head] = 0;
        largest[head] = -INFINITY;
    }
    memset(values, 0, sizeof(float) * p->num_heads * padded);
    Cursor cursor = cursor_at(p, task, 0), ahead = cursor_at(p, task, TILE);
    if (is_first)
        for (Cursor early = cursor; early.left > 0 && early.left > cursor.left - TILE;)
            prefetch(element(dtype, p->cache, next_slot(&early) * width), width * element_size(dtype));
    if (ahead.left <= 0 && next) {
        ahead = cursor_at(p, next, -ahead.left);
        next = 0;
    }
    float scores[group][TILE], scales[group];
    Tile tile;
    while (cursor.left > 0) {
        tile.count = cursor.left < TILE ? cursor.left : TILE;
        tile.first_distance = task[2] - cursor.left - (p->seq_lens[row] - 1);
        for (int64_t t = 0; t < tile.count; t++) {
            tile.slots[t] = next_slot(&cursor);
            if (ahead.left <= 0 && next) {
                ahead = cursor_at(p, next, 0);
                next = 0;
            }
            tile.ahead[t] = ahead.left > 0 ? next_slot(&ahead) : tile.slots[t];
        }
        for (int64_t kv_head = 0; kv_head < p->num_kv_heads; kv_head++) {
            int64_t head = kv_head * group;
            all_scores(dtype, vectors, aligned, step, p, &tile, kv_head, group, query + head * padded, scores);
            for (int64_t g = 0; g < group; g++)
                largest[head + g] = tile_weights(p, &tile, head + g, scores[g], largest[head + g],
                                                 &totals[head + g], &scales[g]);
            all_values(dtype, vectors, aligned, step, p, &tile, kv_head, group, (const float(*)[TILE])scores, scales,
                       values + head * padded);
        }
    }
}

INLINE void write_row(int dtype, const PagedDecode *p, int64_t row, int64_t head, const float *values,
                      float total) {
    int64_t size = p->head_size;
    void *to = (char *)p->output + (row * p->num_heads + head) * size * element_size(dtype);
    for (int64_t at = 0; at < size; at += LANES)
        store_some(dtype, to, at, load_some(DTYPE_FLOAT32, values, at, size) / total, size);
}

INLINE void finish_task(int dtype, const PagedDecode *p, const int32_t *task, int64_t padded, const float *values,
                        const float *totals, const float *largest) {
    for (int64_t head = 0; head < p->num_heads; head++) {
        if (task[3] < 0) {
            write_row(dtype, p, task[0], head, values + head * padded, totals[head]);
            continue;
        }
        float *to = p->partials + (task[3] * p->num_heads + head) * (p->head_size + 2);
        to[0] = largest[head];
        to[1] = totals[head];
        memcpy(to + 2, values + head * padded, sizeof(float) * p->head_size);
    }
}

INLINE void merge(int dtype, const PagedDecode *p, const int32_t *merged) {
    int64_t size = p->head_size;
    float values[MAX_VECTORS * LANES];
    for (int64_t head = 0; head < p->num_heads; head++) {
        const float *from = p->partials + (merged[1] * p->num_heads + head) * (size + 2);
        int64_t next = p->num_heads * (size + 2);
        float highest = -INFINITY, total = 0;
        for (int32_t i = 0; i < merged[2]; i++) highest = from[i * next] > highest ? from[i * next] : highest;
        memset(values, 0, sizeof(float) * size);
        for (int32_t i = 0; i < merged[2]; i++) {
            const float *part = from + i * next;
            if (part[0] == -INFINITY && part[1] == 0) continue; /* all of it lay outside the window */
            float scale = expf(part[0] - highest);
            total += part[1] * scale;
            for (int64_t at = 0; at < size; at++) values[at] += part[2 + at] * scale;
        }
        write_row(dtype, p, merged[0], head, values, total);
    }
}

#define RUN(dtype, vectors, aligned, step) \
    run_task(dtype, vectors, aligned, step, p, task, next, is_first, query, values, totals, largest)

INLINE void dispatch(int dtype, const PagedDecode *p, const int32_t *task, const int32_t *next, int is_first,
                     int vectors, float *query, float *values, float *totals, float *largest) {
    if (p->head_size % LANES) RUN(dtype, vectors, 0, 1);
    else if (vectors == 4) RUN(dtype, 4, 1, 4);
    else if (vectors == 8) RUN(dtype, 8, 1, 2);
    else if (vectors == 16) RUN(dtype, 16, 1, 1);
    else RUN(dtype, vectors, 1, 1);
    finish_task(dtype, p, task, (int64_t)vectors * LANES, values, totals, largest);
}

/* Tasks are dealt out in turn, so that each thread knows its next one. */
static void decode(const PagedDecode *p) {
    int vectors = (int)((p->head_size + LANES - 1) / LANES);
    int64_t padded = (int64_t)vectors * LANES, heads = p->num_heads;
    float query[heads * padded], values[heads * padded], totals[heads], largest[heads];
    int64_t me = omp_get_thread_num(), all = omp_get_num_threads();
    for (int64_t i = me; i < p->num_tasks; i += all) {
        const int32_t *task = p->tasks + 4 * i, *next = i + all < p->num_tasks ? task + 4 * all : 0;
        if (p->dtype == DTYPE_BFLOAT16)
            dispatch(DTYPE_BFLOAT16, p, task, next, i == me, vectors, query, values, totals, largest);
        else dispatch(DTYPE_FLOAT32, p, task, next, i == me, vectors, query, values, totals, largest);
    }
    if (!p->num_merges) return;
#pragma omp barrier
#pragma omp for schedule(dynamic, 1) nowait
    for (int64_t i = 0; i < p->num_merges; i++) {
        if (p->dtype == DTYPE_BFLOAT16) merge(DTYPE_BFLOAT16, p, p->merges + 3 * i);
        else merge(DTYPE_FLOAT32, p, p->merges + 3 * i);
    }
}

static int paged_attention(const PagedAttention *a) {
    const PagedStep *step = a->step;
    int has_more = a->dtype == DTYPE_BFLOAT16 && step->num_pieces + step->num_shared;
    if (has_more && paged_prefill(a)) return 1;
    decode(&(PagedDecode){
        .query = a->query, .cache = a->cache, .block_tables = step->block_tables, .seq_lens = step->seq_lens,
        .tasks = step->tasks, .merges = step->merges, .slopes = a->slopes, .partials = step->partials,
        .output = a->output, .row_stride = a->row_stride, .table_stride = step->table_stride,
        .num_tasks = step->num_tasks, .num_merges = step->num_merges, .num_heads = a->num_heads,
        .num_kv_heads = a->num_kv_heads, .head_size = a->head_size, .block_size = step->block_size,
        .window = a->window, .scale = a->scale, .logit_cap = a->logit_cap, .dtype = a->dtype});
    return 0;
}

QUIRE_KERNEL(paged_attention, PagedAttention, paged_attention, p->step->num_tasks <= 1 && !p->step->num_pieces)

typedef struct {
    const void *key, *value; /* [rows, K, D], strides in elements from token to token */
    void *cache;
    const int64_t *slots; /* [rows] */
    int64_t rows, key_stride, value_stride, width;
    int32_t dtype, threads;
} WriteKv;

/* Writes keys and values to their slots. */
static int write_kv(const WriteKv *p) {
    int64_t bytes = element_size(p->dtype), size = p->width * bytes, token, last;
    team_share(p->rows, &token, &last);
    for (; token < last; token++) {
        char *to = (char *)p->cache + p->slots[token] * 2 * size;
        memcpy(to, (const char *)p->key + token * p->key_stride * bytes, size);
        memcpy(to + size, (const char *)p->value + token * p->value_stride * bytes, size);
    }
    return 0;
}

QUIRE_KERNEL(write_kv, WriteKv, write_kv, p->rows *p->width * element_size(p->dtype) < 1 << 18)
