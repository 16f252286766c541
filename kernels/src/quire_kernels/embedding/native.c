/* Rows of a table by their indices, whatever is in them. */

#include "team.h"

#include <stdint.h>
#include <string.h>

typedef struct {
    const void *table;    /* [table_rows, row_bytes] */
    const int64_t *index; /* [rows] */
    void *out;            /* [rows, row_bytes] */
    int64_t rows, row_bytes, table_rows;
    int32_t threads;
} Gather;

static int gather(const Gather *p) {
    int64_t row, last;
    team_share(p->rows, &row, &last);
    for (; row < last; row++) {
        if (p->index[row] < 0 || p->index[row] >= p->table_rows) return OUT_OF_RANGE;
        memcpy((char *)p->out + row * p->row_bytes, (const char *)p->table + p->index[row] * p->row_bytes, p->row_bytes);
    }
    return 0;
}

QUIRE_KERNEL(gather, Gather, gather, p->rows *p->row_bytes < 1 << 18)
