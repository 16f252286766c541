/* Whole blocks of a KV cache, copied within it. */

#include "team.h"

#include <stdint.h>
#include <string.h>

enum { PIECE = 16384 }; /* bytes that one thread copies at a time: blocks are few and large */

typedef struct {
    char *cache;                          /* [num_blocks, block_bytes] */
    const int64_t *sources, *destinations; /* [pairs] */
    int64_t pairs, block_bytes, num_blocks;
    int32_t threads;
} CopyBlocks;

static int copy_blocks(const CopyBlocks *p) {
    int64_t pieces = (p->block_bytes + PIECE - 1) / PIECE, piece, last;
    for (int64_t pair = 0; pair < p->pairs; pair++) { /* by every thread, so that none copies where one id is wrong */
        int64_t from = p->sources[pair], to = p->destinations[pair];
        if (from < 0 || to < 0 || from >= p->num_blocks || to >= p->num_blocks) return OUT_OF_RANGE;
    }
    team_share(p->pairs * pieces, &piece, &last);
    for (; piece < last; piece++) {
        int64_t pair = piece / pieces, begin = piece % pieces * PIECE, rest = p->block_bytes - begin;
        const char *from = p->cache + p->sources[pair] * p->block_bytes + begin;
        memcpy(p->cache + p->destinations[pair] * p->block_bytes + begin, from, rest < PIECE ? rest : PIECE);
    }
    return 0;
}

QUIRE_KERNEL(copy_blocks, CopyBlocks, copy_blocks, p->pairs *p->block_bytes < 1 << 18)
