/* (x - mean) / sqrt(variance + eps) * weight + bias, in float32, rounded once; of x, or of its sum with
   another, which is kept. */

#include "sums.h"
#include "team.h"
#include "vector.h"

typedef struct {
    const void *x, *residual;   /* [rows, size], strides in elements from row to row; residual may be null */
    const void *weight, *bias;  /* [size]; bias may be null */
    void *sum, *out;            /* [rows, size], contiguous; x + residual, where there is one, is what is normed */
    int64_t rows, size, row_stride, residual_stride;
    float eps;
    int32_t dtype, threads;
} LayerNorm;

/* What up to 16 values from `at` on are more than the mean, 0 behind the row's end. */
INLINE vec deviations(int dtype, const void *from, int64_t at, int64_t size, float mean) {
    vec value = load_some(dtype, from, at, size) - mean;
    return size - at >= LANES ? value : blend(LANE_NUMBERS < (int32_t)(size - at), value, splat(0.0f));
}

INLINE void norm_row(int dtype, const LayerNorm *p, int64_t row) {
    const void *from = element(dtype, p->x, row * p->row_stride);
    if (p->residual) {
        const void *other = element(dtype, p->residual, row * p->residual_stride);
        from = keep_sum(dtype, from, other, (char *)p->sum + row * p->size * element_size(dtype), p->size);
    }
    vec sums = {}, squares = {};
    for (int64_t at = 0; at < p->size; at += LANES) sums += load_some(dtype, from, at, p->size);
    float mean = sum_lanes(sums) / (float)p->size;
    for (int64_t at = 0; at < p->size; at += LANES) {
        vec value = deviations(dtype, from, at, p->size, mean);
        squares += value * value;
    }
    float inverse = 1.0f / sqrtf(sum_lanes(squares) / (float)p->size + p->eps);
    void *to = (char *)p->out + row * p->size * element_size(dtype);
    for (int64_t at = 0; at < p->size; at += LANES) {
        vec normed = (load_some(dtype, from, at, p->size) - mean) * inverse * load_some(dtype, p->weight, at, p->size);
        if (p->bias) normed += load_some(dtype, p->bias, at, p->size);
        store_some(dtype, to, at, normed, p->size);
    }
}

static int layer_norm(const LayerNorm *p) {
    int64_t row, last;
    team_share(p->rows, &row, &last);
    for (; row < last; row++) {
        if (p->dtype == DTYPE_BFLOAT16) norm_row(DTYPE_BFLOAT16, p, row);
        else norm_row(DTYPE_FLOAT32, p, row);
    }
    return 0;
}

QUIRE_KERNEL(layer_norm, LayerNorm, layer_norm, p->rows *p->size < 16384)
