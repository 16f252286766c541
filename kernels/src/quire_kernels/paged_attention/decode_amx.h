/* Tasks of decodes by AMX: bfloat16, head sizes 64, 96, 128 and 256, up to 16 query heads to a KV head.

   16 tokens at a time, one KV head's group of queries beside each other:

       scores[token, member] = key[token, d] . query[d, member]

   so that vectors hold the scores of several tokens. The time is that of reading the cache, if nothing gets in its way:
   memory is read fastest in the order of addresses, and requests for lines that wait for one of a core's few line buffers
   take the places of reads that hit a cache. So while a tile is attended to, the lines of the next one are asked for
   evenly, as they lie, into the second-level cache. Where a tile does not follow the one before it, its pages are touched a
   tile earlier: blocks in no order take 10 % less time so. */

#include "amx.h"
#include "decode.h"

#define TOKENS 16
#define MOST_GROUP 16
#define PAGE 4096

#if defined(QUIRE_AMX) && defined(__AMX_BF16__) && defined(__AVX512BF16__)

INLINE int is_for_amx(const PagedDecode *p) {
    int64_t size = p->head_size;
    return p->with_amx && p->dtype == DTYPE_BFLOAT16 && p->kept == DTYPE_BFLOAT16 && p->block_size % TOKENS == 0 &&
           (size == 64 || size == 96 || size == 128 || size == 256) && p->num_heads <= MOST_GROUP * p->num_kv_heads;
}

/* The tile that a token of a row is in. */
INLINE const char *tile_at(const PagedDecode *p, int64_t row, int64_t token) {
    int64_t block = p->block_tables[row * p->table_stride + token / p->block_size];
    int64_t slot = block * p->block_size + token % p->block_size / TOKENS * TOKENS;
    return (const char *)p->cache + slot * token_pitch(DTYPE_BFLOAT16, p->num_kv_heads, p->head_size);
}

/* The tile at a token that lies in a task, or as far behind it in this thread's next one; null where there is none. */
INLINE const char *coming_tile(const PagedDecode *p, const int32_t *task, const int32_t *next, int64_t token) {
    if (token < task[2]) return tile_at(p, task[0], token);
    if (!next) return 0;
    token += first_seen(p, next) / TOKENS * TOKENS - (task[2] + TOKENS - 1) / TOKENS * TOKENS;
    return token < next[2] ? tile_at(p, next[0], token) : 0;
}

INLINE void ask_for(const char **line, int64_t lines) {
    for (int64_t i = 0; i < lines; i++, *line += CACHE_LINE) __builtin_prefetch(*line, 0, 2);
}

/* The largest, or the sum, over the tokens of a vector: lanes that are `padded` apart. */
INLINE vec over_tokens(int64_t padded, vec x, int is_sum) {
    if (padded < 16) x = is_sum ? x + ROTATED(x, 8) : maximum(x, ROTATED(x, 8));
    if (padded < 8) x = is_sum ? x + ROTATED(x, 4) : maximum(x, ROTATED(x, 4));
    return x;
}

/* values[g] = values[g] * fading[g] + sum over t of weights[t][g] * value[t], for `heads` members; `lines` of the next tile
   are asked for at each token. */
INLINE void sum_values(int vectors, int heads, int64_t padded, int64_t pitch, const char *value, int64_t count,
                       const float *weights, const float *fading, float *values, const char *coming, int lines) {
    vec sums[4][16];
#pragma GCC unroll 4
    for (int g = 0; g < heads; g++)
#pragma GCC unroll 16
        for (int v = 0; v < vectors; v++) sums[g][v] = load(DTYPE_FLOAT32, values, (g * vectors + v) * LANES) * fading[g];
    for (int64_t t = 0; t < count; t++) {
        ask_for(&coming, lines);
#pragma GCC unroll 16
        for (int v = 0; v < vectors; v++) {
            vec x = load(DTYPE_BFLOAT16, value + t * pitch, v * LANES);
#pragma GCC unroll 4
            for (int g = 0; g < heads; g++) sums[g][v] += x * weights[t * padded + g];
        }
    }
#pragma GCC unroll 4
    for (int g = 0; g < heads; g++)
#pragma GCC unroll 16
        for (int v = 0; v < vectors; v++) store(DTYPE_FLOAT32, values, (g * vectors + v) * LANES, sums[g][v]);
}

#define SUM_VALUES(heads) \
    sum_values(vectors, heads, padded, pitch, value, count, weights + g, fading + g, values + g * vectors * LANES, coming, \
               g ? 0 : lines)

INLINE void sum_group(int vectors, int64_t padded, int64_t pitch, int64_t group, const char *value, int64_t count,
                      const float *weights, const float *fading, float *values, const char *coming, int lines) {
    const int64_t step = vectors > 8 ? 1 : vectors > 4 ? 2 : 4;
    int64_t g = 0;
    for (; g + step <= group; g += step) {
        if (vectors > 8) SUM_VALUES(1);
        else if (vectors > 4) SUM_VALUES(2);
        else SUM_VALUES(4);
    }
    if (step > 2 && group - g == 3) SUM_VALUES(3);
    else if (step > 2 && group - g == 2) SUM_VALUES(2);
    else if (step > 1 && group - g == 1) SUM_VALUES(1);
}

/* Scales scores [16, padded] of a tile, of which the first `skipped` and those from `count` on are not seen. `lines` of the
   next tile are asked for with each vector.
   `distance`: key minus query position of the first. Returns the largest score over tokens, of each lane's member. */
INLINE vec scale_scores(const PagedDecode *p, int64_t padded, float *scores, const vec slopes, int64_t skipped, int64_t count,
                        int64_t distance, const char **coming, int64_t lines) {
    vec top = splat(-INFINITY);
    const veci tokens = LANE_NUMBERS / (int32_t)padded;
    for (int64_t i = 0; i < padded; i++) {
        ask_for(coming, lines);
        veci token = tokens + (int32_t)(i * LANES / padded);
        vec x = load(DTYPE_FLOAT32, scores, i * LANES) * p->scale;
        if (p->logit_cap > 0)
            for (int lane = 0; lane < LANES; lane++) x[lane] = p->logit_cap * tanhf(x[lane] / p->logit_cap);
        if (p->slopes) x += slopes * __builtin_convertvector(token + (int32_t)distance, vec);
        x = blend((token >= (int32_t)skipped) & (token < (int32_t)count), x, splat(-INFINITY));
        top = maximum(x, top);
        store(DTYPE_FLOAT32, scores, i * LANES, x);
    }
    return over_tokens(padded, top, 0);
}

/* One task, whose first token is a multiple of 16: `values` [H, size], `totals` and `largest` [H] are its result. `next`:
   this thread's next task, or null. Tile register 0: sums; 1: keys; 2: queries. */
INLINE void amx_task(int vectors, int64_t padded, const PagedDecode *p, const int32_t *task, const int32_t *next,
                     float *values, float *totals, float *largest) {
    const int64_t kv_heads = p->num_kv_heads, group = p->num_heads / kv_heads, size = p->head_size, steps = vectors / 2;
    const int64_t pitch = token_pitch(DTYPE_BFLOAT16, kv_heads, size);
    uint32_t queries[kv_heads][steps * 16 * padded] __attribute__((aligned(64))); /* [pairs of elements, members] */
    vec tops[kv_heads], sums[kv_heads], slopes[kv_heads];
    memset(queries, 0, sizeof queries);
    for (int64_t head = 0; head < p->num_heads; head++) {
        const char *from = (const char *)p->query + 2 * (task[0] * p->row_stride + head * size);
        for (int64_t pair = 0; pair < size / 2; pair++)
            memcpy(&queries[head / group][pair * padded + head % group], from + 4 * pair, 4);
    }
    for (int64_t k = 0; k < kv_heads; k++) {
        tops[k] = splat(-INFINITY), sums[k] = slopes[k] = (vec){};
        for (int lane = 0; p->slopes && lane < LANES; lane++)
            slopes[k][lane] = lane % padded < group ? p->slopes[k * group + lane % padded] : 0;
    }
    memset(values, 0, sizeof(float) * p->num_heads * size);
    __asm__ volatile("" : : "r"(queries) : "memory"); /* GCC 12 does not know that tiles are loaded from it */
    /* Most lines are asked for between the many instructions and few reads of the softmax, in two passes over vectors. */
    const int64_t lines = TOKENS * (vectors - vectors / 4) / 2 / padded;
    float scores[TOKENS * padded] __attribute__((aligned(64))), fading[LANES] __attribute__((aligned(64)));
    int64_t first = first_seen(p, task), skipped = first % TOKENS;
    const char *tile = first < task[2] ? tile_at(p, task[0], first) : 0;
    for (int64_t token = tile ? first - skipped : task[2]; token < task[2]; token += TOKENS, skipped = 0) {
        int64_t left = task[2] - token, count = left < TOKENS ? left : TOKENS;
        const char *after = coming_tile(p, task, next, token + TOKENS), *later = coming_tile(p, task, next, token + 2 * TOKENS);
        if (later && later != after + TOKENS * pitch) /* elsewhere: begin to look for its pages */
            for (int64_t at = 0; at < TOKENS * pitch; at += PAGE) __builtin_prefetch(later + at);
        if (!after) after = tile;
        const char *coming = after;
        for (int64_t k = 0; k < kv_heads; k++) {
            const char *keys = tile + 2 * k * size, *seen = tile + 2 * (kv_heads + k) * size + skipped * pitch;
            _tile_zero(0);
            for (int64_t step = 0; step < steps; step++) {
                _tile_loadd(1, keys + 64 * step, pitch);
                _tile_loadd(2, queries[k] + 16 * padded * step, 4 * padded);
                _tile_dpbf16ps(0, 1, 2);
            }
            _tile_stored(0, scores, 4 * padded);
            vec top = scale_scores(p, padded, scores, slopes[k], skipped, count, token - (p->seq_lens[task[0]] - 1), &coming,
                                   lines);
            top = maximum(top, tops[k]);
            vec fade = exponential(tops[k] - top), sum = {};
            for (int64_t i = 0; i < padded; i++) {
                ask_for(&coming, lines);
                vec x = exponential(load(DTYPE_FLOAT32, scores, i * LANES) - top);
                sum += x;
                store(DTYPE_FLOAT32, scores, i * LANES, x);
            }
            sums[k] = sums[k] * fade + sum;
            tops[k] = top;
            store(DTYPE_FLOAT32, fading, 0, fade);
            sum_group(vectors, padded, pitch, group, seen, count - skipped, scores + skipped * padded, fading,
                      values + k * group * size, coming, vectors - 2 * lines * padded / TOKENS);
            coming = after + (k + 1) * TOKENS * vectors * CACHE_LINE;
        }
        tile = after;
    }
    for (int64_t k = 0; k < kv_heads; k++) {
        sums[k] = over_tokens(padded, sums[k], 1);
        for (int64_t g = 0; g < group; g++) largest[k * group + g] = tops[k][g], totals[k * group + g] = sums[k][g];
    }
}

/* All tasks of this thread. */
static void decode_by_amx(const PagedDecode *p) {
    int64_t group = p->num_heads / p->num_kv_heads, padded = group <= 4 ? 4 : group <= 8 ? 8 : 16, heads = p->num_heads;
    int64_t me = omp_get_thread_num(), all = omp_get_num_threads();
    float values[heads * p->head_size] __attribute__((aligned(CACHE_LINE))), totals[heads], largest[heads];
    amx_config config = {.palette = 1};
    for (int i = 0; i < 3; i++) config.rows[i] = 16, config.row_bytes[i] = i == 1 ? 64 : 4 * padded;
    __asm__ volatile("" : : "r"(&config) : "memory"); /* GCC 12 does not know that all of it is read */
    _tile_loadconfig(&config);
    for (int64_t i = me; i < p->num_tasks; i += all) {
        const int32_t *task = p->tasks + 4 * i, *next = i + all < p->num_tasks ? task + 4 * all : 0;
        if (p->head_size == 64) amx_task(4, padded, p, task, next, values, totals, largest);
        else if (p->head_size == 96) amx_task(6, padded, p, task, next, values, totals, largest);
        else if (p->head_size == 128) amx_task(8, padded, p, task, next, values, totals, largest);
        else amx_task(16, padded, p, task, next, values, totals, largest);
        finish_task(DTYPE_BFLOAT16, p, task, p->head_size, values, totals, largest);
    }
    _tile_release();
}

#else

INLINE int is_for_amx(const PagedDecode *p) { return 0; }

static void decode_by_amx(const PagedDecode *p) {}

#endif
