/* Sums that are rounded and kept, and then normed where they lie. */

#ifndef QUIRE_SUMS_H
#define QUIRE_SUMS_H

#include "vector.h"

/* Puts the sum of two rows of `size` elements at `to`; gives `to`. */
INLINE const void *keep_sum(int dtype, const void *a, const void *b, void *to, int64_t size) {
    for (int64_t at = 0; at < size; at += LANES)
        store_some(dtype, to, at, load_some(dtype, a, at, size) + load_some(dtype, b, at, size), size);
    return to;
}

#endif
