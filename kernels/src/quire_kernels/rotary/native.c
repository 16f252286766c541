/* Rotates feature pairs (a, b) to (a cos - b sin, b cos + a sin), in place; each product is rounded. */

#include "team.h"
#include "vector.h"

INLINE void rotate_halves(int dtype, void *head, const void *cos, const void *sin, int64_t half) {
    for (int64_t at = 0; at < half; at += LANES) {
        vec c = load_some(dtype, cos, at, half), s = load_some(dtype, sin, at, half);
        vec a = load_some(dtype, head, at, half);
        void *upper = (char *)head + half * element_size(dtype);
        vec b = load_some(dtype, upper, at, half);
        store_some(dtype, head, at, round_to(dtype, a * c) - round_to(dtype, b * s), half);
        store_some(dtype, upper, at, round_to(dtype, b * c) + round_to(dtype, a * s), half);
    }
}

INLINE void rotate_pairs(int dtype, void *head, const void *cos, const void *sin, int64_t half) {
    for (int64_t at = 0; at < half; at++) { /* two lanes carry the pair */
        vec c = load_part(dtype, cos, at, 1), s = load_part(dtype, sin, at, 1);
        vec pair = load_part(dtype, head, 2 * at, 2);
        vec a = splat(pair[0]), b = splat(pair[1]);
        vec first = round_to(dtype, a * c) - round_to(dtype, b * s);
        vec second = round_to(dtype, b * c) + round_to(dtype, a * s);
        vec both = {first[0], second[0]};
        store_part(dtype, head, 2 * at, both, 2);
    }
}

typedef struct {
    void *data;                         /* [tokens, heads, >= 2 * half] */
    int64_t heads, token_stride, head_stride; /* strides in elements */
} Heads;

INLINE void rotate_token(int dtype, const Heads *x, int64_t token, const void *cos, const void *sin, int64_t half,
                         int interleaved) {
    for (int64_t head = 0; head < x->heads; head++) {
        int64_t at = token * x->token_stride + head * x->head_stride;
        void *first = (char *)x->data + at * element_size(dtype);
        if (interleaved) rotate_pairs(dtype, first, cos, sin, half);
        else rotate_halves(dtype, first, cos, sin, half);
    }
}

typedef struct {
    void *query, *key;
    const void *cos, *sin; /* [rows, half], contiguous */
    int64_t rows;          /* tokens */
    int64_t query_heads, query_token_stride, query_head_stride, key_heads, key_token_stride, key_head_stride, half;
    int32_t interleaved, dtype, threads;
} Rotary;

INLINE void rotate(int dtype, const Rotary *p, int64_t token) {
    Heads query = {p->query, p->query_heads, p->query_token_stride, p->query_head_stride};
    Heads key = {p->key, p->key_heads, p->key_token_stride, p->key_head_stride};
    const void *cos = element(dtype, p->cos, token * p->half), *sin = element(dtype, p->sin, token * p->half);
    rotate_token(dtype, &query, token, cos, sin, p->half, p->interleaved);
    rotate_token(dtype, &key, token, cos, sin, p->half, p->interleaved);
}

static int rotary(const Rotary *p) {
    int64_t token, last;
    team_share(p->rows, &token, &last);
    for (; token < last; token++) {
        if (p->dtype == DTYPE_BFLOAT16) rotate(DTYPE_BFLOAT16, p, token);
        else rotate(DTYPE_FLOAT32, p, token);
    }
    return 0;
}

QUIRE_KERNEL(rotary, Rotary, rotary, p->rows *(p->query_heads + p->key_heads) * p->half < 8192)
