/* x / sqrt(mean(x^2) + eps) in float32, rounded to x's type, times the weight. */

#include "vector.h"

INLINE void norm_rows(int dtype, const void *x, const void *weight, void *out, int64_t first, int64_t last,
                      int64_t size, int64_t stride, float eps) {
    for (int64_t row = first; row < last; row++) {
        const void *from = element(dtype, x, row * stride);
        vec squares = {};
        for (int64_t at = 0; at < size; at += LANES) {
            vec value = load_some(dtype, from, at, size);
            squares += value * value;
        }
        float inverse = 1.0f / sqrtf(sum_lanes(squares) / (float)size + eps);
        void *to = (char *)out + row * size * element_size(dtype);
        for (int64_t at = 0; at < size; at += LANES) {
            vec normed = round_to(dtype, load_some(dtype, from, at, size) * inverse);
            store_some(dtype, to, at, normed * load_some(dtype, weight, at, size), size);
        }
    }
}

/* x: [rows, size] with `stride` elements from row to row; out: [rows, size], contiguous. */
void quire_rms_norm(int dtype, const void *x, const void *weight, void *out, int64_t rows, int64_t size,
                    int64_t stride, float eps, int threads) {
    if (rows * size < 16384) threads = 1;
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1)
    for (int64_t row = 0; row < rows; row++) {
        if (dtype == DTYPE_BFLOAT16) norm_rows(DTYPE_BFLOAT16, x, weight, out, row, row + 1, size, stride, eps);
        else norm_rows(DTYPE_FLOAT32, x, weight, out, row, row + 1, size, stride, eps);
    }
}
