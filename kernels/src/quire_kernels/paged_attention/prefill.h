/* The parts of a unit of work of prefill.c: what is packed, multiplied, weighed and written. */

#include "products.h"

#define KEYS 128  /* of a chunk */
#define COLUMNS 32 /* of a block */

typedef struct {
    const int32_t *task;
    const int32_t *users;                   /* of a shared piece: row and partial of each; else null */
    int64_t kv_head, group, columns, steps; /* steps: of 32 elements of a head */
    uint16_t *queries;                      /* [blocks, steps, 2, 16, 16, 2] */
    float *sums;                            /* [blocks, steps * 32, 32]: the output before it is divided by the totals */
    float *largest, *totals;                /* [blocks, 32]; largest in units of log2 */
    uint16_t *keys;                         /* [KEYS / 16, steps, 16, 32] */
    uint16_t *values;                       /* [steps * 2, KEYS / 32, 16, 32] */
    float *scores;                          /* [KEYS, 32] */
    uint16_t *weights;                      /* [KEYS / 32, 2, 16, 16, 2] */
} Scratch;

INLINE int64_t head_steps(const PagedPrefill *p) { return (p->head_size + 31) / 32; }

INLINE int64_t scratch_bytes(const PagedPrefill *p, int64_t blocks) {
    int64_t width = head_steps(p) * 32;
    return blocks * COLUMNS * (width * 6 + 8) + KEYS * width * 4 + KEYS * COLUMNS * 6;
}

static Scratch scratch_at(const PagedPrefill *p, char *memory, int64_t blocks) {
    int64_t width = head_steps(p) * 32;
    Scratch s = {.steps = head_steps(p)};
    s.sums = (float *)memory;
    s.largest = s.sums + blocks * COLUMNS * width;
    s.totals = s.largest + blocks * COLUMNS;
    s.scores = s.totals + blocks * COLUMNS;
    s.queries = (uint16_t *)(s.scores + KEYS * COLUMNS);
    s.keys = s.queries + blocks * COLUMNS * width;
    s.values = s.keys + KEYS * width;
    s.weights = s.values + KEYS * width;
    return s;
}

INLINE int64_t position_of(const Scratch *s, int64_t column) {
    int64_t last = s->columns - 1;
    return s->task[3] + (column < last ? column : last) / s->group;
}

INLINE int64_t offset_of(const PagedPrefill *p, const Scratch *s, int64_t column, int64_t stride) {
    int64_t token = s->users ? s->users[2 * (column / s->group)] : s->task[1] + column / s->group;
    return token * stride + (s->kv_head * s->group + column % s->group) * p->head_size;
}

/* Elements from `at` on of a head, 32 of them, 0 past its end. */
INLINE __m512i load_elements(const uint16_t *head, int64_t at, int64_t size) {
    int64_t left = size - at;
    return _mm512_maskz_loadu_epi16(left >= 32 ? 0xffffffffu : (1u << left) - 1, head + at);
}

/* Packs the queries of a block, and clears its results. */
static void begin_block(const PagedPrefill *p, Scratch *s, int64_t block) {
    for (int64_t step = 0; step < s->steps; step++)
        for (int64_t half = 0; half < 2; half++) {
            __m512i rows[16];
            for (int64_t i = 0; i < 16; i++) {
                int64_t column = block * COLUMNS + half * 16 + i;
                rows[i] = column >= s->columns ? _mm512_setzero_si512()
                                               : load_elements(p->query + offset_of(p, s, column, p->row_stride),
                                                               step * 32, p->head_size);
            }
            transpose(rows);
            uint16_t *to = s->queries + ((block * s->steps + step) * 2 + half) * TILE;
            for (int64_t i = 0; i < 16; i++) _mm512_store_si512(to + 32 * i, rows[i]);
        }
    memset(s->sums + block * COLUMNS * s->steps * 32, 0, sizeof(float) * COLUMNS * s->steps * 32);
    for (int64_t i = 0; i < COLUMNS; i++) s->largest[block * COLUMNS + i] = -INFINITY;
    memset(s->totals + block * COLUMNS, 0, sizeof(float) * COLUMNS);
}

/* Copies `count` keys and values from `chunk` on, filled up with 0 to a multiple of 32. */
static void pack_chunk(const PagedPrefill *p, Scratch *s, int64_t chunk, int64_t count) {
    const int32_t *table = p->block_tables + s->task[0] * p->table_stride;
    int64_t width = 2 * p->num_kv_heads * p->head_size, to_values = p->num_kv_heads * p->head_size;
    const uint16_t *heads[KEYS];
    for (int64_t i = 0; i < count; i++) {
        int64_t token = chunk + i, slot = table[token / p->block_size] * p->block_size + token % p->block_size;
        heads[i] = p->cache + slot * width + s->kv_head * p->head_size;
    }
    int64_t padded = (count + 31) / 32 * 32;
    for (int64_t i = 0; i < padded; i++)
        for (int64_t step = 0; step < s->steps; step++) {
            uint16_t *to = s->keys + ((i / 16 * s->steps + step) * 16 + i % 16) * 32;
            _mm512_store_si512(to, i < count ? load_elements(heads[i], step * 32, p->head_size) : _mm512_setzero_si512());
        }
    for (int64_t i = 0; i < padded; i += 32)
        for (int64_t at = 0; at < s->steps * 32; at += 16) {
            int64_t left = p->head_size - at;
            __mmask16 mask = left >= 16 ? 0xffff : left > 0 ? (1u << left) - 1 : 0;
            __m512i rows[16];
            for (int64_t pair = 0; pair < 16; pair++) {
                int64_t key = i + 2 * pair;
                __m256i low = {}, high = {};
                if (key < count) low = _mm256_maskz_loadu_epi16(mask, heads[key] + to_values + at);
                if (key + 1 < count) high = _mm256_maskz_loadu_epi16(mask, heads[key + 1] + to_values + at);
                rows[pair] = _mm512_or_si512(_mm512_cvtepu16_epi32(low),
                                             _mm512_slli_epi32(_mm512_cvtepu16_epi32(high), 16));
            }
            transpose(rows);
            uint16_t *to = s->values + (at / 16 * (KEYS / 32) + i / 32) * TILE;
            for (int64_t d = 0; d < 16; d++) _mm512_store_si512(to + 32 * d, rows[d]);
        }
}

/* 2^x, relative error below 3e-6; 0 for -inf, NaN for NaN. */
INLINE __m512 power_of_two(__m512 x) {
    x = _mm512_max_ps(_mm512_set1_ps(-200.0f), x);
    __m512 n = _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC), r = _mm512_sub_ps(x, n);
    __m512 y = _mm512_set1_ps(9.570100596e-3f);
    y = _mm512_fmadd_ps(y, r, _mm512_set1_ps(5.591786022e-2f));
    y = _mm512_fmadd_ps(y, r, _mm512_set1_ps(2.402474486e-1f));
    y = _mm512_fmadd_ps(y, r, _mm512_set1_ps(6.931218148e-1f));
    y = _mm512_fmadd_ps(y, r, _mm512_set1_ps(9.999992614e-1f));
    return _mm512_scalef_ps(y, n);
}

/* The scores of half a block that are no plain products: scaled, capped, biased, and -inf where a column does not see. */
static void adjust_scores(const PagedPrefill *p, const Scratch *s, int64_t column, int64_t chunk, int64_t count,
                          float *scores) {
    int32_t positions[16];
    float slopes[16];
    for (int64_t i = 0; i < 16; i++) {
        positions[i] = (int32_t)position_of(s, column + i);
        slopes[i] = p->slopes ? p->slopes[s->kv_head * s->group + (column + i) % s->group] : 0;
    }
    veci position, nobody = (veci){} - 1;
    vec slope;
    memcpy(&position, positions, sizeof position);
    memcpy(&slope, slopes, sizeof slope);
    for (int64_t i = 0; i < count; i++) {
        vec x = load(DTYPE_FLOAT32, scores, i * COLUMNS) * p->scale;
        veci distance = position - (int32_t)(chunk + i);
        if (p->logit_cap > 0)
            for (int lane = 0; lane < LANES; lane++) x[lane] = p->logit_cap * tanhf(x[lane] / p->logit_cap);
        x -= slope * __builtin_convertvector(distance, vec);
        veci is_seen = (distance >= 0) & (p->window ? distance < (int32_t)p->window : nobody);
        store(DTYPE_FLOAT32, scores, i * COLUMNS, blend(is_seen, x, splat(-INFINITY)));
    }
}

/* Makes weights of the scores of half a block; `factor` makes units of log2 of them. Returns what the sums so far are
   to be multiplied by. */
INLINE __m512 weigh(const float *scores, int64_t count, float factor, float *largest, float *totals, uint16_t *weights) {
    const __m512i interleaved = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6,
                                                 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
    __m512 highest[4];
    for (int i = 0; i < 4; i++) highest[i] = _mm512_set1_ps(-INFINITY);
    for (int64_t i = 0; i < count; i += 4)
        for (int j = 0; j < 4; j++) highest[j] = _mm512_max_ps(_mm512_load_ps(scores + (i + j) * COLUMNS), highest[j]);
    __m512 most = _mm512_max_ps(_mm512_max_ps(highest[0], highest[1]), _mm512_max_ps(highest[2], highest[3]));
    __m512 before = _mm512_load_ps(largest), scale = _mm512_set1_ps(factor);
    most = _mm512_max_ps(_mm512_mul_ps(most, scale), before);
    _mm512_store_ps(largest, most);
    __mmask16 is_any = _mm512_cmp_ps_mask(most, _mm512_set1_ps(-INFINITY), _CMP_NEQ_UQ);
    most = _mm512_maskz_mov_ps(is_any, most); /* nothing was seen: all weights become 0 */
    __m512 low_sum = _mm512_setzero_ps(), high_sum = low_sum;
    for (int64_t i = 0; i < count; i += 2) {
        __m512 low = power_of_two(_mm512_fmsub_ps(_mm512_load_ps(scores + i * COLUMNS), scale, most));
        __m512 high = power_of_two(_mm512_fmsub_ps(_mm512_load_ps(scores + (i + 1) * COLUMNS), scale, most));
        low_sum = _mm512_add_ps(low_sum, low);
        high_sum = _mm512_add_ps(high_sum, high);
        __m512i both = (__m512i)_mm512_cvtne2ps_pbh(high, low);
        _mm512_store_si512(weights + i / 32 * 2 * TILE + i % 32 * 16, _mm512_permutexvar_epi16(interleaved, both));
    }
    __m512 fading = power_of_two(_mm512_sub_ps(before, most));
    _mm512_store_ps(totals, _mm512_fmadd_ps(_mm512_load_ps(totals), fading, _mm512_add_ps(low_sum, high_sum)));
    return fading;
}

/* What a chunk of keys, in tiles of 32, gives to a block. */
INLINE void add_tiles(const PagedPrefill *p, Scratch *s, int64_t block, int64_t chunk, int64_t tiles, int is_plain) {
    int64_t column = block * COLUMNS;
    const uint16_t *queries = s->queries + block * s->steps * 2 * TILE;
    for (int64_t i = 0; i < tiles; i++)
        multiply(p->with_amx, s->keys + i * 2 * s->steps * TILE, s->steps * TILE, queries, s->steps,
                 s->scores + i * 32 * COLUMNS, 0);
    const float log2e = 1.44269504f;
    __m512 fading[2];
    for (int64_t half = 0; half < 2; half++) {
        float *scores = s->scores + 16 * half;
        if (!is_plain) adjust_scores(p, s, column + 16 * half, chunk, 32 * tiles, scores);
        fading[half] = weigh(scores, 32 * tiles, is_plain ? p->scale * log2e : log2e, s->largest + column + 16 * half,
                             s->totals + column + 16 * half, s->weights + half * TILE);
    }
    float *sums = s->sums + block * COLUMNS * s->steps * 32;
    __m512 one = _mm512_set1_ps(1.0f);
    if (_mm512_cmp_ps_mask(fading[0], one, _CMP_NEQ_UQ) | _mm512_cmp_ps_mask(fading[1], one, _CMP_NEQ_UQ))
        for (int64_t i = 0; i < s->steps * 64; i++)
            _mm512_store_ps(sums + 16 * i, _mm512_mul_ps(_mm512_load_ps(sums + 16 * i), fading[i % 2]));
    for (int64_t step = 0; step < s->steps; step++)
        multiply(p->with_amx, s->values + step * 2 * (KEYS / 32) * TILE, KEYS / 32 * TILE, s->weights, tiles,
                 sums + step * 32 * COLUMNS, 1);
}

/* What a chunk of keys gives to a block, whose queries may not see all of it. */
static void add_chunk(const PagedPrefill *p, Scratch *s, int64_t block, int64_t chunk) {
    int64_t column = block * COLUMNS, first = position_of(s, column), last = position_of(s, column + COLUMNS - 1);
    if (chunk > last || (p->window && chunk + KEYS - 1 <= first - p->window)) return;
    int64_t count = last + 1 - chunk < KEYS ? last + 1 - chunk : KEYS, tiles = (count + 31) / 32;
    int is_plain = chunk + KEYS - 1 <= first && !(p->window && chunk <= last - p->window) && p->logit_cap == 0 &&
                   !p->slopes && p->scale > 0;
    add_tiles(p, s, block, chunk, tiles, is_plain);
}

/* Leaves a block's sums as partial results; see native.c. */
static void end_shared_block(const PagedPrefill *p, Scratch *s, int64_t block, float *partials) {
    const float ln2 = 0.693147181f;
    for (int64_t half = 0; half < 2; half++)
        for (int64_t at = 0; at < p->head_size; at += 16) {
            int64_t column = block * COLUMNS + half * 16, left = p->head_size - at;
            __mmask16 mask = left >= 16 ? 0xffff : (1u << left) - 1;
            __m512i rows[16];
            const float *sums = s->sums + (block * s->steps * 32 + at) * COLUMNS + half * 16;
            for (int64_t d = 0; d < 16; d++) rows[d] = _mm512_load_si512(sums + d * COLUMNS);
            transpose(rows);
            for (int64_t i = 0; i < 16 && column + i < s->columns; i++) {
                int64_t partial = s->users[2 * ((column + i) / s->group) + 1], head = s->kv_head * s->group + (column + i) % s->group;
                float *to = partials + (partial * p->num_heads + head) * (p->head_size + 2);
                to[0] = s->largest[column + i] * ln2;
                to[1] = s->totals[column + i];
                _mm512_mask_storeu_ps(to + 2 + at, mask, (__m512)rows[i]);
            }
        }
}

/* Writes a block's output. */
static void end_block(const PagedPrefill *p, Scratch *s, int64_t block) {
    for (int64_t half = 0; half < 2; half++) {
        int64_t column = block * COLUMNS + half * 16;
        __m512 total = _mm512_load_ps(s->totals + column);
        for (int64_t at = 0; at < p->head_size; at += 16) {
            __m512i rows[16];
            const float *sums = s->sums + (block * s->steps * 32 + at) * COLUMNS + half * 16;
            for (int64_t d = 0; d < 16; d++)
                rows[d] = (__m512i)_mm512_div_ps(_mm512_load_ps(sums + d * COLUMNS), total);
            transpose(rows);
            int64_t left = p->head_size - at;
            __mmask16 mask = left >= 16 ? 0xffff : (1u << left) - 1;
            for (int64_t i = 0; i < 16 && column + i < s->columns; i++)
                _mm256_mask_storeu_epi16(
                    p->output + offset_of(p, s, column + i, p->num_heads * p->head_size) + at, mask,
                    (__m256i)_mm512_cvtneps_pbh((__m512)rows[i]));
        }
    }
}
