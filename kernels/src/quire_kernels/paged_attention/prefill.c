/* Attention of rows of several queries over a paged KV cache, in bfloat16.

   A task is up to some hundred queries of a row; with one KV head it is a unit of work. Its queries, times the query
   heads of the KV head, are columns in blocks of 32; keys come in chunks of 128, which are copied once a chunk for all
   blocks. Everything is transposed, so that a lane belongs to a column from its scores to its output:

       scores[key, column]  = keys[key, d] . queries[d, column]
       output[d, column]   += values[d, key] . weights[key, column]

   Both products are of 16 rows with 32 inputs each and 16 pairs of inputs with 16 columns each: AMX tiles, or operands
   of VDPBF16PS. The softmax runs along (Milakov and Gimelshein 2018; Dao et al. 2022): scores, sums and outputs are
   float32, weights are rounded to bfloat16. Chunks begin at multiples of 128 keys, so that what a query gets does not
   depend on how the prompt was cut into steps. */

#include <math.h>
#include <omp.h>
#include <stdlib.h>

#include "amx.h"
#include "vector.h"

typedef struct {
    const uint16_t *query;       /* [tokens, H, D], row_stride elements from token to token */
    const uint16_t *cache;       /* [slots, 2 * K, D] */
    const int32_t *block_tables; /* [rows, table_stride] */
    const int32_t *tasks;        /* [num_tasks, 4]: row, first token, tokens, position of the first one */
    const float *slopes;         /* [H] or null */
    uint16_t *output;            /* [tokens, H, D] */
    int64_t row_stride, table_stride, num_tasks, most_tokens;
    int64_t num_heads, num_kv_heads, head_size, block_size, window; /* window 0: none */
    float scale, logit_cap;                                         /* cap 0: none */
    int32_t threads, with_amx;
} PagedPrefill;

#ifdef __AVX512BF16__

#include "prefill.h"

/* One unit of work. */
static void attend(const PagedPrefill *p, const int32_t *task, int64_t kv_head, Scratch *s) {
    int64_t group = p->num_heads / p->num_kv_heads, columns = task[2] * group, last = task[3] + task[2] - 1;
    s->task = task, s->kv_head = kv_head, s->group = group, s->columns = columns;
    int64_t blocks = (columns + COLUMNS - 1) / COLUMNS;
    for (int64_t block = 0; block < blocks; block++) begin_block(p, s, block);
    int64_t first = p->window && task[3] >= p->window ? task[3] - p->window + 1 : 0;
    for (int64_t chunk = first / KEYS * KEYS; chunk <= last; chunk += KEYS) {
        pack_chunk(p, s, chunk, last + 1 - chunk < KEYS ? last + 1 - chunk : KEYS);
        for (int64_t block = 0; block < blocks; block++) add_chunk(p, s, block, chunk);
    }
    for (int64_t block = 0; block < blocks; block++) end_block(p, s, block);
}

/* 0, or 1 where memory is short. */
int quire_paged_prefill(const PagedPrefill *p) {
    int64_t blocks = (p->most_tokens * (p->num_heads / p->num_kv_heads) + COLUMNS - 1) / COLUMNS;
    int64_t bytes = scratch_bytes(p, blocks), units = p->num_tasks * p->num_kv_heads;
    char *memory = aligned_alloc(64, p->threads * bytes);
    if (!memory) return 1;
#pragma omp parallel num_threads(p->threads) if (p->threads > 1)
    {
        Scratch scratch = scratch_at(p, memory + omp_get_thread_num() * bytes, blocks);
        begin_products(p->with_amx);
#pragma omp for schedule(dynamic, 1)
        for (int64_t unit = 0; unit < units; unit++)
            attend(p, p->tasks + 4 * (unit / p->num_kv_heads), unit % p->num_kv_heads, &scratch);
        end_products(p->with_amx);
    }
    free(memory);
    return 0;
}

#else

int quire_paged_prefill(const PagedPrefill *p) { return 1; }

#endif
