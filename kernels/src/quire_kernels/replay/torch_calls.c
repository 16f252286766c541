/* Kernels for what models ask of torch itself between the ops: copies of rows, sums and products of rows, numbers as
   factors and bounds. */

#include "team.h"
#include "vector.h"

enum { ADD, MULTIPLY };

typedef struct {
    const void *a, *b; /* [rows, size], strides in elements from row to row */
    void *out;         /* [rows, size] */
    int64_t rows, size, a_stride, b_stride;
    int32_t operation, dtype, threads;
} Combine;

INLINE void combine_row(int dtype, const Combine *p, int64_t row) {
    const void *a = element(dtype, p->a, row * p->a_stride), *b = element(dtype, p->b, row * p->b_stride);
    void *out = (char *)p->out + row * p->size * element_size(dtype);
    for (int64_t at = 0; at < p->size; at += LANES) {
        vec x = load_some(dtype, a, at, p->size), y = load_some(dtype, b, at, p->size);
        store_some(dtype, out, at, p->operation == ADD ? x + y : x * y, p->size);
    }
}

static int combine(const Combine *p) {
    int64_t row, last;
    team_share(p->rows, &row, &last);
    for (; row < last; row++) {
        if (p->dtype == DTYPE_BFLOAT16) combine_row(DTYPE_BFLOAT16, p, row);
        else combine_row(DTYPE_FLOAT32, p, row);
    }
    return 0;
}

QUIRE_KERNEL(combine, Combine, combine, p->rows *p->size < 16384)

typedef struct {
    const void *x; /* [rows, row_bytes], strides in bytes from row to row */
    void *out;     /* the same */
    int64_t rows, row_bytes, x_stride, out_stride;
    int32_t threads;
} CopyRows;

static int copy_rows(const CopyRows *p) {
    int64_t row, last;
    team_share(p->rows, &row, &last);
    for (; row < last; row++)
        memcpy((char *)p->out + row * p->out_stride, (const char *)p->x + row * p->x_stride, p->row_bytes);
    return 0;
}

QUIRE_KERNEL(copy_rows, CopyRows, copy_rows, p->rows *p->row_bytes < 1 << 18)

typedef struct {
    const void *x; /* [rows, size], strides in elements from row to row */
    void *out;     /* the same; may be x */
    int64_t rows, size, x_stride, out_stride;
    float factor, low, high; /* out = x * factor, no less than low, no more than high */
    int32_t dtype, threads;
} Adjust;

INLINE void adjust_row(int dtype, const Adjust *p, int64_t row) {
    const void *x = element(dtype, p->x, row * p->x_stride);
    void *out = (char *)p->out + row * p->out_stride * element_size(dtype);
    for (int64_t at = 0; at < p->size; at += LANES) {
        vec y = load_some(dtype, x, at, p->size) * p->factor; /* NaN stays */
        y = blend(y < p->low, splat(p->low), y);
        store_some(dtype, out, at, blend(y > p->high, splat(p->high), y), p->size);
    }
}

static int adjust(const Adjust *p) {
    int64_t row, last;
    team_share(p->rows, &row, &last);
    for (; row < last; row++) {
        if (p->dtype == DTYPE_BFLOAT16) adjust_row(DTYPE_BFLOAT16, p, row);
        else adjust_row(DTYPE_FLOAT32, p, row);
    }
    return 0;
}

QUIRE_KERNEL(adjust, Adjust, adjust, p->rows *p->size < 16384)
