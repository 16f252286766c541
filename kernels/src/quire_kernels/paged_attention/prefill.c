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

#include "amx.h"
#include "kv_cache.h"
#include "paged.h"
#include "team.h"
#include "vector.h"

/* What is attended: of PagedAttention and its step. */
typedef struct {
    const uint16_t *query, *cache;
    const int32_t *block_tables, *tasks;
    const float *slopes;
    uint16_t *output;
    int64_t row_stride, table_stride;
    int64_t num_heads, num_kv_heads, head_size, block_size, window;
    float scale, logit_cap;
    int32_t with_amx, kept;
} PagedPrefill;

#ifdef __AVX512BF16__

#include "prefill.h"

/* A unit of work: what some rows of one token have in common, for one KV head. All see all of it. */
static void attend_shared(const PagedPrefill *p, const PagedStep *step, int64_t unit, Scratch *s) {
    const int32_t *shared = step->shared + 4 * (unit / p->num_kv_heads);
    s->users = step->users + 2 * shared[0];
    int32_t task[4] = {s->users[0], 0, shared[1], 0};
    s->task = task, s->kv_head = unit % p->num_kv_heads, s->group = p->num_heads / p->num_kv_heads;
    s->columns = shared[1] * s->group;
    int64_t blocks = (s->columns + COLUMNS - 1) / COLUMNS;
    for (int64_t block = 0; block < blocks; block++) begin_block(p, s, block);
    for (int64_t chunk = shared[2]; chunk < shared[3]; chunk += KEYS) {
        int64_t count = shared[3] - chunk < KEYS ? shared[3] - chunk : KEYS;
        pack_chunk(p, s, chunk, count);
        for (int64_t block = 0; block < blocks; block++) add_tiles(p, s, block, chunk, count / 32, count / 32, 1);
        add_parts(p, s);
    }
    for (int64_t block = 0; block < blocks; block++) end_shared_block(p, s, block, step->partials);
    s->users = 0;
}

/* A unit of work: some queries of a row, for one KV head. */
static void attend(const PagedPrefill *p, const int32_t *task, int64_t kv_head, Scratch *s) {
    int64_t group = p->num_heads / p->num_kv_heads, columns = task[2] * group, last = task[3] + task[2] - 1;
    s->task = task, s->kv_head = kv_head, s->group = group, s->columns = columns;
    int64_t blocks = (columns + COLUMNS - 1) / COLUMNS;
    for (int64_t block = 0; block < blocks; block++) begin_block(p, s, block);
    int64_t first = p->window && task[3] >= p->window ? task[3] - p->window + 1 : 0;
    for (int64_t chunk = first / KEYS * KEYS; chunk <= last; chunk += KEYS) {
        pack_chunk(p, s, chunk, last + 1 - chunk < KEYS ? last + 1 - chunk : KEYS);
        for (int64_t block = 0; block < blocks; block++) add_chunk(p, s, block, chunk);
        add_parts(p, s);
    }
    for (int64_t block = 0; block < blocks; block++) end_block(p, s, block);
}

int paged_prefill(const PagedAttention *a) {
    const PagedStep *step = a->step;
    PagedPrefill p = {.query = a->query, .cache = a->cache, .block_tables = step->block_tables, .tasks = step->pieces,
                      .slopes = a->slopes, .output = a->output, .row_stride = a->row_stride,
                      .table_stride = step->table_stride, .num_heads = a->num_heads, .num_kv_heads = a->num_kv_heads,
                      .head_size = a->head_size, .block_size = step->block_size, .window = a->window,
                      .scale = a->scale, .logit_cap = a->logit_cap, .with_amx = a->with_amx, .kept = a->kept};
    int64_t blocks = (step->most_tokens * (p.num_heads / p.num_kv_heads) + COLUMNS - 1) / COLUMNS;
    int64_t bytes = scratch_bytes(&p, blocks), units = step->num_pieces * p.num_kv_heads;
    char *memory = team_memory(omp_get_num_threads() * bytes);
    if (!memory) return 1;
    Scratch scratch = scratch_at(&p, memory + omp_get_thread_num() * bytes, blocks);
    begin_products(p.with_amx);
#pragma omp for schedule(dynamic, 1) nowait
    for (int64_t unit = 0; unit < step->num_shared * p.num_kv_heads; unit++) attend_shared(&p, step, unit, &scratch);
#pragma omp for schedule(dynamic, 1) nowait
    for (int64_t unit = 0; unit < units; unit++)
        attend(&p, p.tasks + 4 * (unit / p.num_kv_heads), unit % p.num_kv_heads, &scratch);
    end_products(p.with_amx);
    free_team_memory(memory);
    return 0;
}

#else

int paged_prefill(const PagedAttention *a) { return 1; }

#endif
