/* What the library was compiled for. */

#include "amx.h"

enum { NO_INSTRUCTIONS = 0, DOT_PRODUCTS = 1, MATRIX_TILES = 2 };

enum { NO_VECTORS = 0, AVX2 = 1, AVX512 = 2 };

/* What multiplies float32, and bfloat16 that is widened to it. */
int quire_vector_instructions(void) {
#if defined(__AVX512F__)
    return AVX512;
#elif defined(__AVX2__) && defined(__FMA__)
    return AVX2;
#else
    return NO_VECTORS;
#endif
}

/* What multiplies bfloat16 as it is. */
int quire_bfloat16_instructions(void) {
#if defined(__AVX512BF16__) && defined(__AVX512BW__) && defined(__AVX512VL__)
#if defined(QUIRE_AMX) && defined(__AMX_BF16__)
    if (amx_is_permitted()) return MATRIX_TILES;
#endif
    return DOT_PRODUCTS;
#else
    return NO_INSTRUCTIONS;
#endif
}
