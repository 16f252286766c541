/* Scores, their softmax and its products: what a chunk of keys gives to a block of a unit of work of prefill.c.

   Weights are relative to a reference of each column, the highest score when it was last raised: it stays until a score
   exceeds it by HEADROOM, so that scores are read once and the products of other tiles and blocks run beside. That is
   decided for each column alone: what a query gets does not depend on its neighbours. */

#include "prefill_scratch.h"

#define LOG2E 1.44269504f
#define HEADROOM 16.0f /* in powers of 2 */

/* 2^x, exact where x is whole; relative error below 1.1e-04, a twentieth of what rounding to bfloat16 takes; 0 for -inf. */
INLINE __m512 power_of_two(__m512 x) {
    __m512 r = _mm512_reduce_ps(x, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC); /* x - floor(x), 0 for -inf */
    __m512 y = _mm512_set1_ps(7.826797017e-02f);
    y = _mm512_fmadd_ps(y, r, _mm512_set1_ps(2.263076823e-01f));
    y = _mm512_fmadd_ps(y, r, _mm512_set1_ps(6.954243475e-01f));
    y = _mm512_fmadd_ps(y, r, _mm512_set1_ps(1.0f));
    return _mm512_scalef_ps(y, x);
}

INLINE veci positions_at(const Scratch *s, int64_t column) {
    veci positions;
    memcpy(&positions, s->positions + column, sizeof positions);
    return positions;
}

/* Hides from the columns of half a block the keys of a tile that come after them. */
INLINE void hide_later(veci position, int64_t key, float *scores) {
    for (int64_t i = 0; i < 32; i++)
        store(DTYPE_FLOAT32, scores, i * COLUMNS,
              blend(position >= (int32_t)(key + i), load(DTYPE_FLOAT32, scores, i * COLUMNS), splat(-INFINITY)));
}

/* The scores of half a block that are no plain products: scaled, capped, biased, and -inf where a column does not see. */
static void adjust_scores(const PagedPrefill *p, const Scratch *s, int64_t column, int64_t chunk, int64_t count,
                          float *scores) {
    float slopes[16];
    for (int64_t i = 0; i < 16; i++)
        slopes[i] = p->slopes ? p->slopes[s->kv_head * s->group + (column + i) % s->group] : 0;
    veci position = positions_at(s, column), nobody = (veci){} - 1;
    vec slope;
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

/* Weights of half a block: what they sum up to, and the highest score above the reference. */
typedef struct {
    __m512 low, high, top;
} Weighed;

INLINE Weighed nothing_weighed(void) { return (Weighed){_mm512_setzero_ps(), _mm512_setzero_ps(), _mm512_set1_ps(-INFINITY)}; }

/* Makes weights of a tile of 32 keys. */
INLINE Weighed weigh(const float *scores, __m512 scale, __m512 reference, Weighed w, uint16_t *weights) {
    const __m512i interleaved = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6,
                                                 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
#pragma GCC unroll 4
    for (int64_t i = 0; i < 32; i += 2) {
        __m512 even = _mm512_fmsub_ps(_mm512_load_ps(scores + i * COLUMNS), scale, reference);
        __m512 odd = _mm512_fmsub_ps(_mm512_load_ps(scores + (i + 1) * COLUMNS), scale, reference);
        w.top = _mm512_max_ps(_mm512_max_ps(even, odd), w.top);
        __m512 low = power_of_two(even), high = power_of_two(odd);
        w.low = _mm512_add_ps(w.low, low);
        w.high = _mm512_add_ps(w.high, high);
        __m512i both = (__m512i)_mm512_cvtne2ps_pbh(high, low);
        _mm512_store_si512(weights + i * 16, _mm512_permutexvar_epi16(interleaved, both));
    }
    return w;
}

/* Makes the next part of the product that waits. */
INLINE void add_part(const PagedPrefill *p, Scratch *s) {
    Waiting *w = &s->waiting;
    if (!w->left) return;
    int64_t step = s->steps - w->left--;
    multiply(p->with_amx, s->values + step * 2 * (KEYS / 32) * TILE, KEYS / 32 * TILE, w->weights, w->tiles,
             w->sums + step * 32 * COLUMNS, 1);
}

static void add_parts(const PagedPrefill *p, Scratch *s) {
    while (s->waiting.left) add_part(p, s);
}

/* What keys give to a block. */
typedef struct {
    int64_t block, column, chunk, tiles;
    int64_t seen_tiles; /* of them every column sees every key */
    int is_plain;       /* scores are products, and a column sees the keys up to itself */
    const uint16_t *queries;
    float *sums, *references, *totals;
    uint16_t *weights;
} Part;

INLINE void score(const PagedPrefill *p, const Scratch *s, const Part *b, int64_t tile, float *scores) {
    multiply(p->with_amx, s->keys + tile * 2 * s->steps * TILE, s->steps * TILE, b->queries, s->steps, scores, 0);
}

INLINE void hide(const Scratch *s, const Part *b, int64_t tile, float *scores) {
    for (int64_t half = 0; half < 2; half++)
        hide_later(positions_at(s, b->column + 16 * half), b->chunk + 32 * tile, scores + 16 * half);
}

INLINE void add_totals(const Part *b, int64_t half, __m512 fading, Weighed w) {
    __m512 before = _mm512_load_ps(b->totals + 16 * half);
    _mm512_store_ps(b->totals + 16 * half, _mm512_fmadd_ps(before, fading, _mm512_add_ps(w.low, w.high)));
}

/* Weighs keys by the references that there are, while products are made: those of the next tile, and of the block
   before. 0 where scores are too high for that; nothing is added then. */
static int weigh_quickly(const PagedPrefill *p, Scratch *s, const Part *b) {
    __m512 scale = _mm512_set1_ps(p->scale * LOG2E), headroom = _mm512_set1_ps(HEADROOM);
    __m512 first = _mm512_load_ps(b->references), second = _mm512_load_ps(b->references + 16);
    Weighed low = nothing_weighed(), high = low;
    score(p, s, b, 0, s->scores);
    for (int64_t i = 0; i < b->tiles; i++) {
        float *scores = s->scores + i % 2 * 32 * COLUMNS;
        if (i + 1 < b->tiles) score(p, s, b, i + 1, s->scores + (i + 1) % 2 * 32 * COLUMNS);
        if (i >= b->seen_tiles) hide(s, b, i, scores);
        low = weigh(scores, scale, first, low, b->weights + i * 2 * TILE);
        add_part(p, s);
        high = weigh(scores + 16, scale, second, high, b->weights + i * 2 * TILE + TILE);
    }
    if (_mm512_cmp_ps_mask(low.top, headroom, _CMP_GT_OQ) | _mm512_cmp_ps_mask(high.top, headroom, _CMP_GT_OQ)) return 0;
    add_totals(b, 0, _mm512_set1_ps(1.0f), low);
    add_totals(b, 1, _mm512_set1_ps(1.0f), high);
    return 1;
}

/* The same with all scores first, and the references raised of columns that need it. */
static void weigh_anew(const PagedPrefill *p, Scratch *s, const Part *b) {
    for (int64_t i = 0; i < b->tiles; i++) {
        score(p, s, b, i, s->scores + i * 32 * COLUMNS);
        if (b->is_plain && i >= b->seen_tiles) hide(s, b, i, s->scores + i * 32 * COLUMNS);
    }
    __m512 scale = _mm512_set1_ps(b->is_plain ? p->scale * LOG2E : LOG2E), fading[2];
    for (int64_t half = 0; half < 2; half++) {
        float *scores = s->scores + 16 * half;
        if (!b->is_plain) adjust_scores(p, s, b->column + 16 * half, b->chunk, 32 * b->tiles, scores);
        __m512 highest[4];
        for (int i = 0; i < 4; i++) highest[i] = _mm512_set1_ps(-INFINITY);
        for (int64_t i = 0; i < 32 * b->tiles; i += 4)
            for (int j = 0; j < 4; j++) highest[j] = _mm512_max_ps(_mm512_load_ps(scores + (i + j) * COLUMNS), highest[j]);
        __m512 top = _mm512_max_ps(_mm512_max_ps(highest[0], highest[1]), _mm512_max_ps(highest[2], highest[3]));
        __m512 before = _mm512_load_ps(b->references + 16 * half), reference = _mm512_mul_ps(top, scale);
        __mmask16 is_low = _mm512_cmp_ps_mask(reference, _mm512_add_ps(before, _mm512_set1_ps(HEADROOM)), _CMP_NGT_UQ);
        reference = _mm512_mask_mov_ps(reference, is_low, before);
        _mm512_store_ps(b->references + 16 * half, reference);
        __mmask16 is_any = _mm512_cmp_ps_mask(reference, _mm512_set1_ps(-INFINITY), _CMP_NEQ_UQ);
        reference = _mm512_maskz_mov_ps(is_any, reference); /* nothing was seen: all weights become 0 */
        Weighed w = nothing_weighed();
        for (int64_t i = 0; i < b->tiles; i++)
            w = weigh(scores + i * 32 * COLUMNS, scale, reference, w, b->weights + i * 2 * TILE + half * TILE);
        fading[half] = power_of_two(_mm512_sub_ps(before, reference));
        add_totals(b, half, fading[half], w);
    }
    __m512 one = _mm512_set1_ps(1.0f);
    if (_mm512_cmp_ps_mask(fading[0], one, _CMP_NEQ_UQ) | _mm512_cmp_ps_mask(fading[1], one, _CMP_NEQ_UQ))
        for (int64_t i = 0; i < s->steps * 64; i++)
            _mm512_store_ps(b->sums + 16 * i, _mm512_mul_ps(_mm512_load_ps(b->sums + 16 * i), fading[i % 2]));
}

/* What a chunk of keys, in tiles of 32, gives to a block. Its product waits until the next block, or add_parts. */
static void add_tiles(const PagedPrefill *p, Scratch *s, int64_t block, int64_t chunk, int64_t tiles, int64_t seen_tiles,
                      int is_plain) {
    int64_t column = block * COLUMNS;
    Part b = {block, column, chunk, tiles, seen_tiles, is_plain, s->queries + block * s->steps * 2 * TILE,
              s->sums + column * s->steps * 32, s->references + column, s->totals + column,
              s->weights + block % 2 * KEYS * COLUMNS};
    __m512 first = _mm512_load_ps(b.references), second = _mm512_load_ps(b.references + 16), none = _mm512_set1_ps(-INFINITY);
    int is_quick = is_plain && !(_mm512_cmp_ps_mask(first, none, _CMP_EQ_OQ) | _mm512_cmp_ps_mask(second, none, _CMP_EQ_OQ));
    if (!is_quick || !weigh_quickly(p, s, &b)) weigh_anew(p, s, &b);
    add_parts(p, s);
    s->waiting = (Waiting){b.weights, b.sums, tiles, s->steps};
}

/* What a chunk of keys gives to a block, whose queries may not see all of it. */
static void add_chunk(const PagedPrefill *p, Scratch *s, int64_t block, int64_t chunk) {
    int64_t column = block * COLUMNS, first = s->positions[column], last = s->positions[column + COLUMNS - 1];
    if (chunk > last || (p->window && chunk + KEYS - 1 <= first - p->window)) return;
    int64_t count = last + 1 - chunk < KEYS ? last + 1 - chunk : KEYS, seen = first + 1 - chunk;
    int is_plain = !(p->window && chunk <= last - p->window) && p->logit_cap == 0 && !p->slopes && p->scale > 0;
    add_tiles(p, s, block, chunk, (count + 31) / 32, seen > 0 ? seen / 32 : 0, is_plain);
}
