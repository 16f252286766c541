/* Rotates feature pairs (a, b) of a head to (a cos - b sin, b cos + a sin), in place; in bfloat16 each product is rounded. */

#ifndef QUIRE_ROTATION_H
#define QUIRE_ROTATION_H

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

/* `heads` heads, `stride` elements from one to the next. */
INLINE void rotate_heads(int dtype, void *first, int64_t heads, int64_t stride, const void *cos, const void *sin,
                         int64_t half, int interleaved) {
    for (int64_t head = 0; head < heads; head++) {
        void *at = (char *)first + head * stride * element_size(dtype);
        if (interleaved) rotate_pairs(dtype, at, cos, sin, half);
        else rotate_halves(dtype, at, cos, sin, half);
    }
}

#endif
