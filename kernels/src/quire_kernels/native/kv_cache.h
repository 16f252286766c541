/* Where a layer's paged KV cache has a token: first the K key heads, then the K value heads, then, where they are
   quantized, a float32 scale for each of them. Quantized heads are filled up to multiples of 4 bytes. */

#ifndef QUIRE_KV_CACHE_H
#define QUIRE_KV_CACHE_H

#include "vector.h"

/* Bytes from head to head; `kept` is the dtype of elements. */
INLINE int64_t head_pitch(int kept, int64_t head_size) {
    return is_quantized(kept) ? (head_size + 3) / 4 * 4 : head_size * element_size(kept);
}

/* Bytes from token to token. */
INLINE int64_t token_pitch(int kept, int64_t num_kv_heads, int64_t head_size) {
    return 2 * num_kv_heads * (head_pitch(kept, head_size) + (is_quantized(kept) ? sizeof(float) : 0));
}

/* Bytes from a token to the scale of one of its heads, of which values' follow keys'. */
INLINE int64_t scale_offset(int kept, int64_t num_kv_heads, int64_t head_size, int64_t head) {
    return 2 * num_kv_heads * head_pitch(kept, head_size) + head * sizeof(float);
}

INLINE float load_scale(const char *at) {
    float scale;
    memcpy(&scale, at, sizeof scale);
    return scale;
}

#endif
