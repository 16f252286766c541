/* Linear layers with 8-bit weights. */

#define BITS 8

#include "weight_only_blocks.h"

QUIRE_KERNEL(w8a16_linear, WeightOnly, weight_only_linear, 0)
