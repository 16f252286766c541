/* Rotates feature pairs (a, b) to (a cos - b sin, b cos + a sin), in place; each product is rounded. */

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

/* Queries and keys; cos, sin: [tokens, half], contiguous. */
void quire_rotary(int dtype, void *query, void *key, const void *cos, const void *sin, int64_t tokens,
                  int64_t query_heads, int64_t query_token_stride, int64_t query_head_stride, int64_t key_heads,
                  int64_t key_token_stride, int64_t key_head_stride, int64_t half, int interleaved, int threads) {
    Heads both[2] = {{query, query_heads, query_token_stride, query_head_stride},
                     {key, key_heads, key_token_stride, key_head_stride}};
    if (tokens * (query_heads + key_heads) * half < 8192) threads = 1;
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1)
    for (int64_t token = 0; token < tokens; token++) {
        const void *c = element(dtype, cos, token * half), *s = element(dtype, sin, token * half);
        for (int i = 0; i < 2; i++) {
            if (dtype == DTYPE_BFLOAT16) rotate_token(DTYPE_BFLOAT16, &both[i], token, c, s, half, interleaved);
            else rotate_token(DTYPE_FLOAT32, &both[i], token, c, s, half, interleaved);
        }
    }
}
