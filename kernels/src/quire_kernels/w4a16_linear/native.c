/* Linear layers with 4-bit weights. */

#define BITS 4

#include "weight_only_blocks.h"

QUIRE_KERNEL(w4a16_linear, WeightOnly, weight_only_linear, 0)
