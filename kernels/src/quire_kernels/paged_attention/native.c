/* Attention of single queries over a paged KV cache that is read where it lies.

   Keys' scales of a quantized cache multiply scores, those of values weights. Work comes as tasks,
   pieces of a row's context; a row of one piece is written to the output at once, the pieces of the
   others leave a partial result (largest score, sum of weights, weighted values) that is merged at the
   end (flash-decoding; Dao et al. 2023). Scores, softmax and sums are float32. */

#include "team.h"

#include "decode_amx.h"
#include "decode_vectors.h"

INLINE void merge(int dtype, const PagedDecode *p, const int32_t *merged) {
    int64_t size = p->head_size;
    float values[MAX_VECTORS * LANES];
    for (int64_t head = 0; head < p->num_heads; head++) {
        const float *from = p->partials + (merged[1] * p->num_heads + head) * (size + 2);
        int64_t next = p->num_heads * (size + 2);
        float highest = -INFINITY, total = 0;
        for (int32_t i = 0; i < merged[2]; i++) highest = from[i * next] > highest ? from[i * next] : highest;
        memset(values, 0, sizeof(float) * size);
        for (int32_t i = 0; i < merged[2]; i++) {
            const float *part = from + i * next;
            if (part[0] == -INFINITY && part[1] == 0) continue; /* all of it lay outside the window */
            float scale = expf(part[0] - highest);
            total += part[1] * scale;
            for (int64_t at = 0; at < size; at++) values[at] += part[2 + at] * scale;
        }
        write_row(dtype, p, merged[0], head, values, total);
    }
}

static void decode_by_vectors(const PagedDecode *p) {
    int vectors = (int)((p->head_size + LANES - 1) / LANES);
    int64_t padded = (int64_t)vectors * LANES, heads = p->num_heads;
    float query[heads * padded] __attribute__((aligned(CACHE_LINE))), values[heads * padded] __attribute__((aligned(CACHE_LINE)));
    float totals[heads], largest[heads];
    int64_t me = omp_get_thread_num(), all = omp_get_num_threads();
    for (int64_t i = me; i < p->num_tasks; i += all) {
        const int32_t *task = p->tasks + 4 * i, *next = i + all < p->num_tasks ? task + 4 * all : 0;
        if (p->kept == DTYPE_INT8)
            dispatch(p->dtype, DTYPE_INT8, p, task, next, i == me, vectors, query, values, totals, largest);
        else if (p->kept == DTYPE_E4M3)
            dispatch(p->dtype, DTYPE_E4M3, p, task, next, i == me, vectors, query, values, totals, largest);
        else if (p->dtype == DTYPE_BFLOAT16)
            dispatch(DTYPE_BFLOAT16, DTYPE_BFLOAT16, p, task, next, i == me, vectors, query, values, totals, largest);
        else dispatch(DTYPE_FLOAT32, DTYPE_FLOAT32, p, task, next, i == me, vectors, query, values, totals, largest);
    }
}

/* Tasks are dealt out in turn, so that each thread knows its next one. */
static void decode(const PagedDecode *p) {
    if (is_for_amx(p)) decode_by_amx(p);
    else decode_by_vectors(p);
    if (!p->num_merges) return;
#pragma omp barrier
#pragma omp for schedule(dynamic, 1) nowait
    for (int64_t i = 0; i < p->num_merges; i++) {
        if (p->dtype == DTYPE_BFLOAT16) merge(DTYPE_BFLOAT16, p, p->merges + 3 * i);
        else merge(DTYPE_FLOAT32, p, p->merges + 3 * i);
    }
}

static int paged_attention(const PagedAttention *a) {
    const PagedStep *step = a->step;
    if (step->num_pieces + step->num_shared && paged_prefill_any(a)) return 1;
    decode(&(PagedDecode){
        .query = a->query, .cache = a->cache, .block_tables = step->block_tables, .seq_lens = step->seq_lens,
        .tasks = step->tasks, .merges = step->merges, .slopes = a->slopes, .partials = step->partials,
        .output = a->output, .row_stride = a->row_stride, .table_stride = step->table_stride,
        .num_tasks = step->num_tasks, .num_merges = step->num_merges, .num_heads = a->num_heads,
        .num_kv_heads = a->num_kv_heads, .head_size = a->head_size, .block_size = step->block_size,
        .window = a->window, .scale = a->scale, .logit_cap = a->logit_cap, .dtype = a->dtype,
        .kept = a->kept, .with_amx = a->with_amx});
    return 0;
}

QUIRE_KERNEL(paged_attention, PagedAttention, paged_attention, p->step->num_tasks <= 1 && !p->step->num_pieces)
