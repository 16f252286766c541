/* Kernels for what models ask of torch itself between the ops: rows of a table, sums and products of rows. */

#include "team.h"
#include "vector.h"

typedef struct {
    const void *table;    /* [..., row_bytes] */
    const int64_t *index; /* [rows] */
    void *out;            /* [rows, row_bytes] */
    int64_t rows, row_bytes;
    int32_t threads;
} Gather;

static int gather(const Gather *p) {
    int64_t row, last;
    team_share(p->rows, &row, &last);
    for (; row < last; row++)
        memcpy((char *)p->out + row * p->row_bytes, (const char *)p->table + p->index[row] * p->row_bytes, p->row_bytes);
    return 0;
}

QUIRE_KERNEL(gather, Gather, gather, p->rows *p->row_bytes < 1 << 18)

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
