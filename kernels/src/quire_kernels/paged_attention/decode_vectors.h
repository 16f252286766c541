/* Tasks of decodes by vectors: any dtype, head size and CPU. Scores of 64 tokens are held at a time. */

#include "decode.h"

#define TILE 64                    /* tokens whose scores are held at a time */
#define MAX_VECTORS 32             /* head sizes up to 512 */

/* Where a head of a token lies. */
INLINE const char *head_at(int kept, const PagedDecode *p, int64_t size, int64_t slot, int64_t head) {
    return (const char *)p->cache + slot * token_pitch(kept, p->num_kv_heads, size) + head * head_pitch(kept, size);
}

/* Tokens of a row's context, in order. */
typedef struct {
    const int32_t *table;
    int64_t block_size, block, offset, left;
} Cursor;

INLINE Cursor cursor_at(const PagedDecode *p, const int32_t *task, int64_t skipped) {
    int64_t first = first_seen(p, task) + skipped;
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
INLINE void tile_scores(int kept, int vectors, int aligned, int heads, int first, const PagedDecode *p,
                        const float *query, const Tile *tile, int64_t kv_head, float (*scores)[TILE]) {
    int64_t padded = (int64_t)vectors * LANES, size = aligned ? padded : p->head_size;
    for (int64_t start = 0; start < tile->count; start += LANES) {
        int64_t some = tile->count - start < LANES ? tile->count - start : LANES;
        vec products[4][LANES];
        for (int64_t t = 0; t < LANES; t++) {
            int64_t slot = tile->slots[start + (t < some ? t : 0)]; /* past the end: the first, unused */
            const void *key = head_at(kept, p, size, slot, kv_head);
            if (first && t < some)
                prefetch(head_at(kept, p, size, tile->ahead[start + t], kv_head), size * element_size(kept));
            vec sums[4] = {};
#pragma GCC unroll 16
            for (int v = 0; v < vectors; v++) {
                vec k = load_some(kept, key, v * LANES, size);
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
INLINE void tile_values(int kept, int vectors, int aligned, int heads, int first, const PagedDecode *p,
                        const Tile *tile, int64_t kv_head, const float (*weights)[TILE], const float *scales, float *values) {
    int64_t padded = (int64_t)vectors * LANES, size = aligned ? padded : p->head_size;
    vec sums[4][MAX_VECTORS];
#pragma GCC unroll 4
    for (int g = 0; g < heads; g++)
#pragma GCC unroll 16
        for (int v = 0; v < vectors; v++)
            sums[g][v] = load(DTYPE_FLOAT32, values, g * padded + v * LANES) * scales[g];
    for (int64_t t = 0; t < tile->count; t++) {
        const void *value = head_at(kept, p, size, tile->slots[t], p->num_kv_heads + kv_head);
        if (first)
            prefetch(head_at(kept, p, size, tile->ahead[t], p->num_kv_heads + kv_head), size * element_size(kept));
#pragma GCC unroll 16
        for (int v = 0; v < vectors; v++) {
            vec x = load_some(kept, value, v * LANES, size);
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

#define SCORES(heads) tile_scores(kept, vectors, aligned, heads, g == 0, p, query + g * padded, tile, kv_head, scores + g)

INLINE void all_scores(int kept, int vectors, int aligned, int step, const PagedDecode *p, const Tile *tile, int64_t kv_head,
                       int64_t group, const float *query, float (*scores)[TILE]) {
    int64_t padded = (int64_t)vectors * LANES, g = 0;
    for (; g + step <= group; g += step) SCORES(step);
    if (step > 2 && group - g == 3) SCORES(3);
    else if (step > 2 && group - g == 2) SCORES(2);
    else
        for (; g < group; g++) SCORES(1);
}

#define VALUES(heads) \
    tile_values(kept, vectors, aligned, heads, g == 0, p, tile, kv_head, weights + g, scales + g, values + g * padded)

INLINE void all_values(int kept, int vectors, int aligned, int step, const PagedDecode *p, const Tile *tile, int64_t kv_head,
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

/* Multiplies scores or weights of a KV head's group by the scales of one of a token's heads, where it has them. */
INLINE void multiply_by_scales(int kept, const PagedDecode *p, const Tile *tile, int64_t head, int64_t group,
                               float (*scores)[TILE]) {
    if (!is_quantized(kept)) return;
    int64_t to_scale = scale_offset(kept, p->num_kv_heads, p->head_size, head);
    float scales[TILE];
    for (int64_t t = 0; t < tile->count; t++)
        scales[t] = load_scale(head_at(kept, p, p->head_size, tile->slots[t], 0) + to_scale);
    for (int64_t g = 0; g < group; g++)
        for (int64_t t = 0; t < tile->count; t++) scores[g][t] *= scales[t];
}

/* One task: `values` [H, padded], `totals` and `largest` [H] are its result. `next`: this thread's next task, or
   null. `is_first`: nobody has asked for its first tokens yet. */
INLINE void run_task(int dtype, int kept, int vectors, int aligned, int step, const PagedDecode *p, const int32_t *task,
                     const int32_t *next, int is_first, float *query, float *values, float *totals,
                     float *largest) {
    int64_t row = task[0], size = p->head_size, bytes = token_pitch(kept, p->num_kv_heads, size);
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
            prefetch(head_at(kept, p, size, next_slot(&early), 0), bytes);
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
            all_scores(kept, vectors, aligned, step, p, &tile, kv_head, group, query + head * padded, scores);
            multiply_by_scales(kept, p, &tile, kv_head, group, scores);
            for (int64_t g = 0; g < group; g++)
                largest[head + g] = tile_weights(p, &tile, head + g, scores[g], largest[head + g],
                                                 &totals[head + g], &scales[g]);
            multiply_by_scales(kept, p, &tile, p->num_kv_heads + kv_head, group, scores);
            all_values(kept, vectors, aligned, step, p, &tile, kv_head, group, (const float(*)[TILE])scores, scales,
                       values + head * padded);
        }
    }
}

#define RUN(vectors, aligned, step) \
    run_task(dtype, kept, vectors, aligned, step, p, task, next, is_first, query, values, totals, largest)

INLINE void dispatch(int dtype, int kept, const PagedDecode *p, const int32_t *task, const int32_t *next, int is_first,
                     int vectors, float *query, float *values, float *totals, float *largest) {
    if (p->head_size % LANES) RUN(vectors, 0, 1);
    else if (vectors == 4) RUN(4, 1, 4);
    else if (vectors == 8) RUN(8, 1, 2);
    else if (is_quantized(kept)) RUN(vectors, 0, 1); /* other sizes are rare: each variant takes seconds to compile */
    else if (vectors == 16) RUN(16, 1, 1);
    else RUN(vectors, 1, 1);
    finish_task(dtype, p, task, (int64_t)vectors * LANES, values, totals, largest);
}
