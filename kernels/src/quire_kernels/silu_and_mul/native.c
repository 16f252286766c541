/* silu(x[:, :size]) * x[:, size:], the first factor rounded to x's type. */

#include "vector.h"

INLINE void combine_row(int dtype, const void *x, void *out, int64_t row, int64_t size) {
    const void *gates = element(dtype, x, 2 * row * size), *ups = element(dtype, x, (2 * row + 1) * size);
    void *to = (char *)out + row * size * element_size(dtype);
    for (int64_t at = 0; at < size; at += LANES) {
        vec gate = load_some(dtype, gates, at, size);
        vec activated = round_to(dtype, gate / (1.0f + exponential(-gate)));
        store_some(dtype, to, at, activated * load_some(dtype, ups, at, size), size);
    }
}

/* x: [rows, 2 * size], out: [rows, size], both contiguous. */
void quire_silu_and_mul(int dtype, const void *x, void *out, int64_t rows, int64_t size, int threads) {
    if (rows * size < 8192) threads = 1;
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1)
    for (int64_t row = 0; row < rows; row++) {
        if (dtype == DTYPE_BFLOAT16) combine_row(DTYPE_BFLOAT16, x, out, row, size);
        else combine_row(DTYPE_FLOAT32, x, out, row, size);
    }
}
