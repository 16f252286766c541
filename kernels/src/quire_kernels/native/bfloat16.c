/* What the CPU multiplies bfloat16 with. */

#include "amx.h"

enum { NO_INSTRUCTIONS = 0, DOT_PRODUCTS = 1, MATRIX_TILES = 2 };

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
