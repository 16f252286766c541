/* Rotates the heads of queries and keys, in place. */

#include "rotation.h"
#include "team.h"

typedef struct {
    void *data;                         /* [tokens, heads, >= 2 * half] */
    int64_t heads, token_stride, head_stride; /* strides in elements */
} Heads;

INLINE void rotate_token(int dtype, const Heads *x, int64_t token, const void *cos, const void *sin, int64_t half,
                         int interleaved) {
    void *first = (char *)x->data + token * x->token_stride * element_size(dtype);
    rotate_heads(dtype, first, x->heads, x->head_stride, cos, sin, half, interleaved);
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
