/* Vectors as wide as a register, for loops that keep sums in registers: the compiler leaves wider ones in memory. */

#ifndef QUIRE_REGISTERS_H
#define QUIRE_REGISTERS_H

#include "vector.h"

#if defined(__AVX512F__)
#define WIDTH 16
#define MOST_SUMS 24 /* so many of 32 registers hold sums, the others what is multiplied */
#elif defined(__AVX__)
#define WIDTH 8
#define MOST_SUMS 12 /* of 16 */
#elif defined(__ARM_NEON)
#define WIDTH 4
#define MOST_SUMS 24
#else
#define WIDTH 4
#define MOST_SUMS 12
#endif

#define REGISTERS (LANES / WIDTH) /* for 16 floats */
#define ENOUGH_SUMS 8             /* so many independent ones hide that a product takes its time */

typedef float reg __attribute__((vector_size(WIDTH * 4)));
typedef int32_t regi __attribute__((vector_size(WIDTH * 4)));
typedef uint32_t regu __attribute__((vector_size(WIDTH * 4)));

INLINE reg load_floats(const float *at) {
    reg x;
    memcpy(&x, at, sizeof x);
    return x;
}

INLINE void store_floats(float *at, reg x) { memcpy(at, &x, sizeof x); }

INLINE regu load_integers(const void *at) {
    regu x;
    memcpy(&x, at, sizeof x);
    return x;
}

/* 16 floats in registers, as one vector. */
INLINE vec join(const reg parts[REGISTERS]) {
    vec x;
    memcpy(&x, parts, sizeof x);
    return x;
}

#endif
