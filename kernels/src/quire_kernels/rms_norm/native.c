/* x / sqrt(mean(x^2) + eps) in float32, rounded to x's type, times the weight; of x, or of its sum with
   another, which is kept. */

#include "sums.h"
#include "team.h"
#include "vector.h"

typedef struct {
    const void *x, *residual; /* [rows, size], strides in elements from row to row; residual may be null */
    const void *weight;       /* [size] */
    void *sum, *out;          /* [rows, size], contiguous; x + residual, where there is one, is what is normed */
    int64_t rows, size, row_stride, residual_stride;
    float eps;
    int32_t dtype, threads;
} RmsNorm;

INLINE void norm_row(int dtype, const RmsNorm *p, int64_t row) {
    const void *from = element(dtype, p->x, row * p->row_stride);
    if (p->residual) {
        const void *other = element(dtype, p->residual, row * p->residual_stride);
        from = keep_sum(dtype, from, other, (char *)p->sum + row * p->size * element_size(dtype), p->size);
    }
    vec squares = {};
    for (int64_t at = 0; at < p->size; at += LANES) {
        vec value = load_some(dtype, from, at, p->size);
        squares += value * value;
    }
    float inverse = 1.0f / sqrtf(sum_lanes(squares) / (float)p->size + p->eps);
    void *to = (char *)p->out + row * p->size * element_size(dtype);
    for (int64_t at = 0; at < p->size; at += LANES) {
        vec normed = round_to(dtype, load_some(dtype, from, at, p->size) * inverse);
        store_some(dtype, to, at, normed * load_some(dtype, p->weight, at, p->size), p->size);
    }
}

static int rms_norm(const RmsNorm *p) {
    int64_t row, last;
    team_share(p->rows, &row, &last);
    for (; row < last; row++) {
        if (p->dtype == DTYPE_BFLOAT16) norm_row(DTYPE_BFLOAT16, p, row);
        else norm_row(DTYPE_FLOAT32, p, row);
    }
    return 0;
}

QUIRE_KERNEL(rms_norm, RmsNorm, rms_norm, p->rows *p->size < 16384)
