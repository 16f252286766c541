/* Activations of rows: computed in float32, rounded once. */

#include "team.h"
#include "vector.h"

enum { SILU, GELU, GELU_TANH, RELU };

typedef struct {
    const void *x; /* [rows, size], row_stride elements from row to row */
    void *out;     /* [rows, size], contiguous */
    int64_t rows, size, row_stride;
    int32_t activation, dtype, threads;
} Activation;

#define PIECE 512 /* elements of a row that are one piece of work */

INLINE vec magnitude(vec x) { return (vec)((veci)x & 0x7fffffff); }

/* 1 / (1 + e^-x), by e^-|x|, which cannot overflow. */
INLINE vec sigmoid(int dtype, vec x) {
    vec power = exponential(-magnitude(x));
    return blend(x < 0.0f, power, splat(1.0f)) * reciprocal(dtype, 1.0f + power);
}

/* e^(-x^2 / 2); a float32's x^2 is split, since its rounding would be multiplied by its size. */
INLINE vec bell(int dtype, vec x) {
    if (dtype == DTYPE_BFLOAT16) return exponential(-0.5f * x * x);
    vec high = (vec)((veci)x & ~0xfff);
    vec square = -0.5f * high * high, rest = -0.5f * (x - high) * (x + high), sum = square + rest;
    return exponential(sum) * (1.0f + ((square - sum) + rest));
}

/* x Phi(x), Phi being the normal distribution: erf by way of its complement, which stays exact to the left of 0.
   Phi(-a) = e^(-a^2 / 2) t q(t) where t = 1 / (1 + 0.35 a); q is a minimax polynomial for 0 <= a <= 13.5, relative
   error 5e-8. Further left Phi is below 1e-41. */
INLINE vec gelu(int dtype, vec x) {
    vec a = magnitude(x);
    a = blend(a > 20.0f, splat(20.0f), a);
    vec t = reciprocal(dtype, 1.0f + 0.35f * a);
    vec q = splat(-2.912587038e-02f);
    q = q * t + 1.438722598e-01f;
    q = q * t - 2.555046145e-01f;
    q = q * t + 1.589293478e-01f;
    q = q * t - 2.293717791e-02f;
    q = q * t + 1.054329537e-01f;
    q = q * t + 1.198524329e-01f;
    q = q * t + 1.398590829e-01f;
    q = q * t + 1.396215698e-01f;
    vec tail = bell(dtype, a) * (t * q);
    return x * blend(x < 0.0f, tail, 1.0f - tail);
}

/* x (1 + tanh(y)) / 2 = x sigmoid(2 y), y = sqrt(2 / pi) (x + 0.044715 x^3): nothing cancels to the left of 0. */
INLINE vec gelu_tanh(int dtype, vec x) { return x * sigmoid(dtype, 1.5957691216057308f * (x + 0.044715f * x * x * x)); }

INLINE void activate_piece(int activation, int dtype, const Activation *p, int64_t row, int64_t first, int64_t last) {
    const void *from = element(dtype, p->x, row * p->row_stride);
    void *to = (char *)p->out + row * p->size * element_size(dtype);
    for (int64_t at = first; at < last; at += LANES) {
        vec x = load_some(dtype, from, at, last), y;
        if (activation == SILU) y = x * sigmoid(dtype, x);
        else if (activation == GELU) y = gelu(dtype, x);
        else if (activation == GELU_TANH) y = gelu_tanh(dtype, x);
        else y = blend(x < 0.0f, splat(0.0f), x); /* NaN stays */
        store_some(dtype, to, at, y, last);
    }
}

INLINE void activate_any(int dtype, const Activation *p, int64_t row, int64_t first, int64_t last) {
    if (p->activation == SILU) activate_piece(SILU, dtype, p, row, first, last);
    else if (p->activation == GELU) activate_piece(GELU, dtype, p, row, first, last);
    else if (p->activation == GELU_TANH) activate_piece(GELU_TANH, dtype, p, row, first, last);
    else activate_piece(RELU, dtype, p, row, first, last);
}

static int activation(const Activation *p) {
    int64_t pieces = (p->size + PIECE - 1) / PIECE, piece, last;
    team_share(p->rows * pieces, &piece, &last);
    for (; piece < last; piece++) {
        int64_t row = piece / pieces, first = piece % pieces * PIECE, end = first + PIECE < p->size ? first + PIECE : p->size;
        if (p->dtype == DTYPE_BFLOAT16) activate_any(DTYPE_BFLOAT16, p, row, first, end);
        else activate_any(DTYPE_FLOAT32, p, row, first, end);
    }
    return 0;
}

QUIRE_KERNEL(activation, Activation, activation, p->rows *p->size < 8192)
