/* Linear layers with 4-bit weights. */

#define BITS 4

#include "weight_only_blocks.h"

int quire_w4a16_linear(const WeightOnly *p) { return weight_only_linear(p); }
