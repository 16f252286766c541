/* The arguments of paged attention: what a layer has of its own, and what the layers of a step share. */

#ifndef QUIRE_PAGED_H
#define QUIRE_PAGED_H

#include <stdint.h>

typedef struct {
    const int32_t *block_tables; /* [rows, table_stride] */
    const int32_t *seq_lens;     /* [rows] */
    const int32_t *tasks;        /* [num_tasks, 4]: row, first token (a multiple of 16), its end, partial or -1 */
    const int32_t *merges;       /* [num_merges, 3]: row, first partial, number of partials */
    const int32_t *pieces;       /* [num_pieces, 4]: row, first token, tokens, position of the first one */
    const int32_t *shared;       /* [num_shared, 4]: first user, users, first token, last token (exclusive) */
    const int32_t *users;        /* [.., 2]: row, partial */
    float *partials;             /* [partials, H, D + 2] */
    int64_t table_stride, block_size, num_tasks, num_merges, num_pieces, num_shared;
    int64_t most_tokens; /* of a piece, or users of a shared one */
} PagedStep;

typedef struct {
    const PagedStep *step;
    const void *query;   /* [tokens, H, D], row_stride elements from token to token */
    const void *cache;   /* see kv_cache.h */
    const float *slopes; /* [H] or null */
    void *output;        /* [tokens, H, D] */
    int64_t row_stride, num_heads, num_kv_heads, head_size, window; /* window 0: none */
    float scale, logit_cap;                                         /* cap 0: none */
    int32_t dtype, kept, with_amx, threads; /* kept: the dtype of the cache's elements */
} PagedAttention;

/* The rows of several tokens, and what rows of one token share, in bfloat16 on CPUs that multiply it; called by every
   thread of a team. 0, or 1 where memory is short. */
int paged_prefill(const PagedAttention *a);

/* The same for both dtypes and all CPUs: by paged_prefill where it serves, else in float32; then nothing may be shared. */
int paged_prefill_any(const PagedAttention *a);

#endif
