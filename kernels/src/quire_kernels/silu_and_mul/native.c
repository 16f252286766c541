/* silu(x[:, :size]) * x[:, size:], the first factor rounded to x's type. */

#include "team.h"
#include "vector.h"

typedef struct {
    const void *x; /* [rows, 2 * size] */
    void *out;     /* [rows, size] */
    int64_t rows, size;
    int32_t dtype, threads;
} SiluAndMul;

#define PIECE 512 /* elements of a row that are one piece of work */

INLINE void combine(int dtype, const SiluAndMul *p, int64_t row, int64_t first, int64_t last) {
    const void *gates = element(dtype, p->x, 2 * row * p->size), *ups = element(dtype, p->x, (2 * row + 1) * p->size);
    void *to = (char *)p->out + row * p->size * element_size(dtype);
    for (int64_t at = first; at < last; at += LANES) {
        vec gate = load_some(dtype, gates, at, last);
        vec activated = round_to(dtype, gate * reciprocal(dtype, 1.0f + exponential(-gate)));
        store_some(dtype, to, at, activated * load_some(dtype, ups, at, last), last);
    }
}

static int silu_and_mul(const SiluAndMul *p) {
    int64_t pieces = (p->size + PIECE - 1) / PIECE, piece, last;
    team_share(p->rows * pieces, &piece, &last);
    for (; piece < last; piece++) {
        int64_t row = piece / pieces, first = piece % pieces * PIECE, end = first + PIECE < p->size ? first + PIECE : p->size;
        if (p->dtype == DTYPE_BFLOAT16) combine(DTYPE_BFLOAT16, p, row, first, end);
        else combine(DTYPE_FLOAT32, p, row, first, end);
    }
    return 0;
}

QUIRE_KERNEL(silu_and_mul, SiluAndMul, silu_and_mul, p->rows *p->size < 8192)
