/* What a unit of work of prefill.c holds: its scratch memory, what is packed into it and written from it. */

#include "products.h"

#define KEYS 128  /* of a chunk */
#define COLUMNS 32 /* of a block */
/* A product of values and weights that is yet to be made: while the AMX unit makes it, the softmax of the next block has
   the other units. */
typedef struct {
    const uint16_t *weights;
    float *sums;
    int64_t tiles, left; /* of 32 keys; of 32 elements of a head */
} Waiting;

typedef struct {
    const int32_t *task;
    const int32_t *users;                   /* of a shared piece: row and partial of each; else null */
    int64_t kv_head, group, columns, steps; /* steps: of 32 elements of a head */
    uint16_t *queries;                      /* [blocks, steps, 2, 16, 16, 2] */
    float *sums;                            /* [blocks, steps * 32, 32]: the output before it is divided by the totals */
    int32_t *positions;                     /* [blocks, 32]; columns past the end have the last one's */
    float *references, *totals;             /* [blocks, 32]: of 2^(score - reference); references in units of log2 */
    uint16_t *keys;                         /* [KEYS / 16, steps, 16, 32] */
    uint16_t *values;                       /* [steps * 2, KEYS / 32, 16, 32] */
    float *scores;                          /* [KEYS, 32] */
    uint16_t *unpacked;                     /* [KEYS, 2, D]: keys and values of a quantized cache */
    uint16_t *weights;                      /* [2, KEYS / 32, 2, 16, 16, 2]: of this block and the one before */
    Waiting waiting;
} Scratch;

INLINE int64_t head_steps(const PagedPrefill *p) { return (p->head_size + 31) / 32; }

INLINE int64_t scratch_bytes(const PagedPrefill *p, int64_t blocks) {
    int64_t width = head_steps(p) * 32;
    return blocks * COLUMNS * (width * 6 + 12) + KEYS * width * (is_quantized(p->kept) ? 8 : 4) + KEYS * COLUMNS * 8;
}

static Scratch scratch_at(const PagedPrefill *p, char *memory, int64_t blocks) {
    int64_t width = head_steps(p) * 32;
    Scratch s = {.steps = head_steps(p)};
    s.sums = (float *)memory;
    s.references = s.sums + blocks * COLUMNS * width;
    s.totals = s.references + blocks * COLUMNS;
    s.positions = (int32_t *)(s.totals + blocks * COLUMNS);
    s.scores = s.totals + 2 * blocks * COLUMNS;
    s.queries = (uint16_t *)(s.scores + KEYS * COLUMNS);
    s.keys = s.queries + blocks * COLUMNS * width;
    s.values = s.keys + KEYS * width;
    s.weights = s.values + KEYS * width;
    s.unpacked = s.weights + 2 * KEYS * COLUMNS;
    return s;
}

/* Where the heads of a block's columns begin, in elements, `stride` of them from token to token; columns past the end are
   like the last one. */
INLINE void heads_of(const PagedPrefill *p, const Scratch *s, int64_t block, int64_t stride, int64_t offsets[COLUMNS]) {
    int64_t query = block * COLUMNS / s->group, member = block * COLUMNS % s->group;
    for (int64_t i = 0; i < COLUMNS; i++) {
        int64_t token = s->users ? s->users[2 * query] : s->task[1] + query;
        offsets[i] = token * stride + (s->kv_head * s->group + member) * p->head_size;
        if (block * COLUMNS + i + 1 < s->columns && ++member == s->group) member = 0, query++;
    }
}

/* Elements from `at` on of a head, 32 of them, 0 past its end. */
INLINE __m512i load_elements(const uint16_t *head, int64_t at, int64_t size) {
    int64_t left = size - at;
    return _mm512_maskz_loadu_epi16(left >= 32 ? 0xffffffffu : (1u << left) - 1, head + at);
}

/* Packs the queries of a block, and clears its results. */
static void begin_block(const PagedPrefill *p, Scratch *s, int64_t block) {
    int64_t heads[COLUMNS], last = s->columns - 1;
    heads_of(p, s, block, p->row_stride, heads);
    for (int64_t step = 0; step < s->steps; step++)
        for (int64_t half = 0; half < 2; half++) {
            __m512i rows[16];
            for (int64_t i = 0; i < 16; i++)
                rows[i] = block * COLUMNS + half * 16 + i > last
                              ? _mm512_setzero_si512()
                              : load_elements(p->query + heads[half * 16 + i], step * 32, p->head_size);
            transpose(rows);
            uint16_t *to = s->queries + ((block * s->steps + step) * 2 + half) * TILE;
            for (int64_t i = 0; i < 16; i++) _mm512_store_si512(to + 32 * i, rows[i]);
        }
    memset(s->sums + block * COLUMNS * s->steps * 32, 0, sizeof(float) * COLUMNS * s->steps * 32);
    for (int64_t i = 0; i < COLUMNS; i++) {
        int64_t column = block * COLUMNS + i;
        s->positions[column] = (int32_t)(s->task[3] + (column < last ? column : last) / s->group);
        s->references[column] = -INFINITY;
    }
    memset(s->totals + block * COLUMNS, 0, sizeof(float) * COLUMNS);
}

/* Rounds the values of one head of a quantized cache to bfloat16; `token` is where its token begins. */
INLINE void unpack_head(int kept, const PagedPrefill *p, const char *token, int64_t head, uint16_t *to) {
    int64_t size = p->head_size;
    float scale = load_scale(token + scale_offset(kept, p->num_kv_heads, size, head));
    const char *from = token + head * head_pitch(kept, size);
    for (int64_t at = 0; at < size; at += LANES)
        store_some(DTYPE_BFLOAT16, to, at, load_some(kept, from, at, size) * scale, size);
}

/* The key and the value of a slot, side by side. */
static void unpack(const PagedPrefill *p, int64_t slot, int64_t kv_head, uint16_t *to) {
    const char *token = (const char *)p->cache + slot * token_pitch(p->kept, p->num_kv_heads, p->head_size);
    for (int64_t i = 0; i < 2; i++, to += p->head_size) {
        if (p->kept == DTYPE_INT8) unpack_head(DTYPE_INT8, p, token, i * p->num_kv_heads + kv_head, to);
        else unpack_head(DTYPE_E4M3, p, token, i * p->num_kv_heads + kv_head, to);
    }
}

/* Copies `count` keys and values from `chunk` on, filled up with 0 to a multiple of 32. */
static void pack_chunk(const PagedPrefill *p, Scratch *s, int64_t chunk, int64_t count) {
    const int32_t *table = p->block_tables + s->task[0] * p->table_stride;
    int64_t width = 2 * p->num_kv_heads * p->head_size, quantized = is_quantized(p->kept);
    int64_t to_values = quantized ? p->head_size : p->num_kv_heads * p->head_size;
    const uint16_t *heads[KEYS];
    for (int64_t i = 0; i < count; i++) {
        int64_t token = chunk + i, slot = table[token / p->block_size] * p->block_size + token % p->block_size;
        heads[i] = quantized ? s->unpacked + i * 2 * p->head_size : p->cache + slot * width + s->kv_head * p->head_size;
        if (quantized) unpack(p, slot, s->kv_head, s->unpacked + i * 2 * p->head_size);
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
                to[0] = s->references[column + i] * ln2;
                to[1] = s->totals[column + i];
                _mm512_mask_storeu_ps(to + 2 + at, mask, (__m512)rows[i]);
            }
        }
}

/* Writes a block's output. */
static void end_block(const PagedPrefill *p, Scratch *s, int64_t block) {
    int64_t heads[COLUMNS];
    heads_of(p, s, block, p->num_heads * p->head_size, heads);
    for (int64_t half = 0; half < 2; half++) {
        int64_t column = block * COLUMNS + half * 16;
        __m512 share = _mm512_div_ps(_mm512_set1_ps(1.0f), _mm512_load_ps(s->totals + column));
        for (int64_t at = 0; at < p->head_size; at += 16) {
            __m512i rows[16];
            const float *sums = s->sums + (block * s->steps * 32 + at) * COLUMNS + half * 16;
            for (int64_t d = 0; d < 16; d++)
                rows[d] = (__m512i)_mm512_mul_ps(_mm512_load_ps(sums + d * COLUMNS), share);
            transpose(rows);
            int64_t left = p->head_size - at;
            __mmask16 mask = left >= 16 ? 0xffff : (1u << left) - 1;
            for (int64_t i = 0; i < 16 && column + i < s->columns; i++)
                _mm256_mask_storeu_epi16(p->output + heads[half * 16 + i] + at, mask,
                                         (__m256i)_mm512_cvtneps_pbh((__m512)rows[i]));
        }
    }
}
