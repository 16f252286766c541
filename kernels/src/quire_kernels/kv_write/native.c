/* Writes keys and values to their slots of a paged KV cache, quantized where it is, and rotates keys and queries first
   where cosines and sines are given: one pass over them instead of two. */

#include "kv_cache.h"
#include "rotation.h"
#include "team.h"

typedef struct {
    void *query, *key;    /* [rows, heads, D], strides in elements from token to token; rotated in place */
    const void *value;
    void *cache;          /* see kv_cache.h */
    const int64_t *slots; /* [rows] */
    const void *cos, *sin; /* [rows, half], contiguous; null: nothing is rotated, and the query is not touched */
    int64_t rows, query_stride, key_stride, value_stride, num_heads, num_kv_heads, head_size, half;
    int32_t interleaved, dtype, kept, threads;
} WriteKv;

/* The least positive number of full precision: a head of zeros has a scale too. */
#define LEAST_SCALE 1.17549435e-38f
#define ROUND 12582912.0f /* 1.5 * 2^23: adding and subtracting it rounds to an integer, ties to even */

/* The bits of numbers of at most 448 as e4m3, rounded to the nearest, ties to even. */
INLINE veci to_e4m3(vec x) {
    veci bits = (veci)x, sign = (bits >> 24) & 0x80;
    bits &= 0x7fffffff;
    veci normal = ((bits + 0x7ffff + ((bits >> 20) & 1)) >> 20) - (120 << 3);
    veci small = __builtin_convertvector((vec)bits * 512.0f + ROUND - ROUND, veci); /* below 2^-6: multiples of 2^-9 */
    veci is_small = bits < (121 << 23);
    return sign | (small & is_small) | (normal & ~is_small);
}

/* One head; see quire.ops.quantized_kv. */
INLINE void quantize_head(int dtype, int kept, const void *head, int64_t size, char *to, char *scale_at) {
    float top = kept == DTYPE_E4M3 ? 448.0f : 127.0f;
    vec most = {};
    veci sick = {};
    for (int64_t at = 0; at < size; at += LANES) {
        vec x = load_some(dtype, head, at, size);
        most = maximum((vec)((veci)x & 0x7fffffff), most);
        sick |= x != x;
    }
    float scale = max_lanes(most) / top;
    if (!(scale > LEAST_SCALE)) scale = LEAST_SCALE;
    for (int lane = 0; lane < LANES; lane++)
        if (sick[lane]) scale = NAN;
    memcpy(scale_at, &scale, sizeof scale);
    for (int64_t at = 0; at < size; at += LANES) {
        vec x = load_some(dtype, head, at, size) / scale;
        x = blend(x > top, splat(top), blend(x < -top, splat(-top), x));
        veci elements = kept == DTYPE_E4M3 ? to_e4m3(x) : __builtin_convertvector(x + ROUND - ROUND, veci);
        char bytes[LANES];
        for (int lane = 0; lane < LANES; lane++) bytes[lane] = (char)elements[lane];
        memcpy(to + at, bytes, size - at < LANES ? size - at : LANES);
    }
}

INLINE void write_heads(int dtype, const WriteKv *p, const char *heads, char *token, int64_t first) {
    int64_t size = p->head_size, pitch = head_pitch(p->kept, size), bytes = element_size(dtype);
    if (!is_quantized(p->kept)) {
        memcpy(token + first * pitch, heads, p->num_kv_heads * pitch);
        return;
    }
    for (int64_t head = 0; head < p->num_kv_heads; head++) {
        char *to = token + (first + head) * pitch;
        char *scale = token + scale_offset(p->kept, p->num_kv_heads, size, first + head);
        if (p->kept == DTYPE_E4M3) quantize_head(dtype, DTYPE_E4M3, heads + head * size * bytes, size, to, scale);
        else quantize_head(dtype, DTYPE_INT8, heads + head * size * bytes, size, to, scale);
    }
}

INLINE void write_token(int dtype, const WriteKv *p, int64_t row) {
    int64_t bytes = element_size(dtype), size = p->head_size;
    char *key = (char *)p->key + row * p->key_stride * bytes;
    if (p->cos) {
        char *query = (char *)p->query + row * p->query_stride * bytes;
        const void *cos = element(dtype, p->cos, row * p->half), *sin = element(dtype, p->sin, row * p->half);
        rotate_heads(dtype, query, p->num_heads, size, cos, sin, p->half, p->interleaved);
        rotate_heads(dtype, key, p->num_kv_heads, size, cos, sin, p->half, p->interleaved);
    }
    char *token = (char *)p->cache + p->slots[row] * token_pitch(p->kept, p->num_kv_heads, size);
    write_heads(dtype, p, key, token, 0);
    write_heads(dtype, p, (const char *)p->value + row * p->value_stride * bytes, token, p->num_kv_heads);
}

static int write_kv(const WriteKv *p) {
    int64_t row, last;
    team_share(p->rows, &row, &last);
    for (; row < last; row++) {
        if (p->dtype == DTYPE_BFLOAT16) write_token(DTYPE_BFLOAT16, p, row);
        else write_token(DTYPE_FLOAT32, p, row);
    }
    return 0;
}

/* Copying takes less time than waking a team, rotating and quantizing more. */
#define IS_SMALL(p)                                                                             \
    ((p)->cos || is_quantized((p)->kept)                                                        \
         ? (p)->rows * ((p)->num_heads + 2 * (p)->num_kv_heads) * (p)->head_size < 16384        \
         : (p)->rows * (p)->num_kv_heads * (p)->head_size * element_size((p)->dtype) < 1 << 18)

QUIRE_KERNEL(write_kv, WriteKv, write_kv, IS_SMALL(p))
