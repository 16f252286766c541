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

INLINE void rotate_token(int dtype, char *token, const void *cos, const void *sin, int64_t heads,
                         int64_t head_stride, int64_t half, int interleaved) {
    for (int64_t head = 0; head < heads; head++) {
        char *at = token + head * head_stride * element_size(dtype);
        if (interleaved) rotate_pairs(dtype, at, cos, sin, half);
        else rotate_halves(dtype, at, cos, sin, half);
    }
}

/* x: [tokens, heads, >= 2 * half] with strides in elements; cos, sin: [tokens, half], contiguous. */
void quire_rotary(int dtype, void *x, const void *cos, const void *sin, int64_t tokens, int64_t heads,
                  int64_t token_stride, int64_t head_stride, int64_t half, int interleaved, int threads) {
    if (tokens * heads * half < 8192) threads = 1;
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1)
    for (int64_t token = 0; token < tokens; token++) {
        char *at = (char *)x + token * token_stride * element_size(dtype);
        const void *c = element(dtype, cos, token * half), *s = element(dtype, sin, token * half);
        if (dtype == DTYPE_BFLOAT16)
            rotate_token(DTYPE_BFLOAT16, at, c, s, heads, head_stride, half, interleaved);
        else rotate_token(DTYPE_FLOAT32, at, c, s, heads, head_stride, half, interleaved);
    }
}
