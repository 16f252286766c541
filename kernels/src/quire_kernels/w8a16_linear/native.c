/* Linear layers with 8-bit weights. */

#define BITS 8

#include "weight_only_blocks.h"

int quire_w8a16_linear(const WeightOnly *p) { return weight_only_linear(p); }
