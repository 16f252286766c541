/* What the kinds of decoding share: their arguments, and what they leave. */

#ifndef QUIRE_DECODE_H
#define QUIRE_DECODE_H

#include "kv_cache.h"
#include "paged.h"
#include "vector.h"

#define CACHE_LINE 64

/* What is decoded: of PagedAttention and its step. */
typedef struct {
    const void *query, *cache;
    const int32_t *block_tables, *seq_lens, *tasks, *merges;
    const float *slopes;
    float *partials;
    void *output;
    int64_t row_stride, table_stride, num_tasks, num_merges;
    int64_t num_heads, num_kv_heads, head_size, block_size, window;
    float scale, logit_cap;
    int32_t dtype, kept, with_amx;
} PagedDecode;

/* The first token of a task's row that it is to see, at or behind the task's first. */
INLINE int64_t first_seen(const PagedDecode *p, const int32_t *task) {
    int64_t visible = p->window ? p->seq_lens[task[0]] - p->window : 0;
    return task[1] > visible ? task[1] : visible;
}

INLINE void write_row(int dtype, const PagedDecode *p, int64_t row, int64_t head, const float *values,
                      float total) {
    int64_t size = p->head_size;
    void *to = (char *)p->output + (row * p->num_heads + head) * size * element_size(dtype);
    for (int64_t at = 0; at < size; at += LANES)
        store_some(dtype, to, at, load_some(DTYPE_FLOAT32, values, at, size) / total, size);
}

INLINE void finish_task(int dtype, const PagedDecode *p, const int32_t *task, int64_t padded, const float *values,
                        const float *totals, const float *largest) {
    for (int64_t head = 0; head < p->num_heads; head++) {
        if (task[3] < 0) {
            write_row(dtype, p, task[0], head, values + head * padded, totals[head]);
            continue;
        }
        float *to = p->partials + (task[3] * p->num_heads + head) * (p->head_size + 2);
        to[0] = largest[head];
        to[1] = totals[head];
        memcpy(to + 2, values + head * padded, sizeof(float) * p->head_size);
    }
}

#endif
