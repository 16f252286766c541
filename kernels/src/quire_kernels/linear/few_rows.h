/* Products of up to 192 rows by AMX: what counts is that weights come from memory all the time.

   Reads that miss the L1 cache wait in the same few line buffers as weights that come from memory, so that reading and
   multiplying add up instead of overlapping. Hence inputs stay in the L1 cache, INPUT_BYTES of them at a time: a part of
   the steps of a group of blocks, copied before into the order in which tiles are loaded; a span of panels passes them,
   whose sums are kept until all parts have come. While a panel's part is multiplied, lines of the next one are asked for
   evenly, into the L2 cache: all of them by one group, some where groups share the panel (LINES, which was measured). */

#include "tiles.h"

#define INPUT_BYTES (28 << 10)
#define MOST_ROWS 192
#define MOST_BLOCKS 4 /* that are multiplied together */
#define GROUP_FLOATS (MOST_BLOCKS * 2 * TILE_FLOATS)
#define KEPT 16 /* sums of a panel and group of blocks */
#define LINES(groups) ((groups) == 1 ? 4 : (groups) == 2 ? 1 : 2) /* with each product of three or four blocks */

#define ASK_FOR(lines) \
    for (int i = 0; i < (lines); i++, coming += LINE_ELEMENTS) _mm_prefetch((const char *)coming, _MM_HINT_T1)

/* Steps of a panel times two blocks. */
INLINE void multiply_two(const Linear *p, const char *x, const uint16_t *weight, int64_t steps, int64_t rows, float *sums,
                         int has_sums, const uint16_t *coming, Waiting *waiting) {
    const int64_t block_bytes = rows * STEP * 2;
    BEGIN_SUMS(0, has_sums, sums);
    BEGIN_SUMS(1, has_sums, sums + TILE_FLOATS);
    BEGIN_SUMS(2, has_sums, sums + 2 * TILE_FLOATS);
    BEGIN_SUMS(3, has_sums, sums + 3 * TILE_FLOATS);
    for (int64_t step = 0; step < steps; step++, weight += STEP_ELEMENTS, x += 2 * block_bytes) {
        _tile_loadd(4, x, 64);
        _tile_loadd(6, weight, 64);
        _tile_dpbf16ps(0, 4, 6);
        ASK_FOR(8);
        _tile_loadd(7, weight + HALF_ELEMENTS, 64);
        _tile_dpbf16ps(1, 4, 7);
        ASK_FOR(8);
        _tile_loadd(5, x + block_bytes, 64);
        _tile_dpbf16ps(2, 5, 6);
        ASK_FOR(8);
        _tile_dpbf16ps(3, 5, 7);
        ASK_FOR(8);
        write_some(p, waiting);
    }
    write_rest(p, waiting);
    _tile_stored(0, sums, 64);
    _tile_stored(1, sums + TILE_FLOATS, 64);
    _tile_stored(2, sums + 2 * TILE_FLOATS, 64);
    _tile_stored(3, sums + 3 * TILE_FLOATS, 64);
}
/* The same of three or four blocks: the tiles of sums are of one half of the panel, then of the other. `lines` of those that
   come are asked for with each product. */
INLINE void multiply_four(const Linear *p, const char *x, const uint16_t *weight, int64_t steps, int64_t rows, float *sums,
                          int has_sums, const uint16_t *coming, const int lines, Waiting *waiting, const int blocks) {
    const int64_t block_bytes = rows * STEP * 2;
    for (int half = 0; half < 2; half++, sums += TILE_FLOATS) {
        const char *input = x;
        const uint16_t *at = weight + half * HALF_ELEMENTS;
        BEGIN_SUMS(0, has_sums, sums);
        BEGIN_SUMS(1, has_sums, sums + 2 * TILE_FLOATS);
        BEGIN_SUMS(2, has_sums, sums + 4 * TILE_FLOATS);
        if (blocks > 3) BEGIN_SUMS(3, has_sums, sums + 6 * TILE_FLOATS);
        for (int64_t step = 0; step < steps; step++, at += STEP_ELEMENTS, input += blocks * block_bytes) {
            _tile_loadd(6, at, 64);
            _tile_loadd(4, input, 64);
            _tile_dpbf16ps(0, 4, 6);
            ASK_FOR(lines);
            _tile_loadd(5, input + block_bytes, 64);
            _tile_dpbf16ps(1, 5, 6);
            ASK_FOR(lines);
            _tile_loadd(4, input + 2 * block_bytes, 64);
            _tile_dpbf16ps(2, 4, 6);
            ASK_FOR(lines);
            if (blocks > 3) {
                _tile_loadd(5, input + 3 * block_bytes, 64);
                _tile_dpbf16ps(3, 5, 6);
            }
            ASK_FOR(lines);
            write_some(p, waiting);
        }
        if (half) write_rest(p, waiting);
        _tile_stored(0, sums, 64);
        _tile_stored(1, sums + 2 * TILE_FLOATS, 64);
        _tile_stored(2, sums + 4 * TILE_FLOATS, 64);
        if (blocks > 3) _tile_stored(3, sums + 6 * TILE_FLOATS, 64);
    }
}

/* Copies a part of the steps of a group's inputs: [steps][blocks][rows][STEP]. */
INLINE void pack_part(const Linear *p, char *to, int64_t first, int64_t rows, int64_t step, int64_t steps, const int blocks) {
    for (int64_t block = 0; block < blocks; block++)
        for (int64_t row = 0; row < rows; row++) {
            const uint16_t *from = p->x + (least(first + block * rows, p->rows - rows) + row) * p->row_stride + step * STEP;
            for (int64_t k = 0; k < steps; k++)
                _mm512_store_si512(to + ((k * blocks + block) * rows + row) * 64, _mm512_loadu_si512(from + k * STEP));
        }
}

/* The panel that is the i-th one to be multiplied from `panel` on: gates and what they are for in turn. */
INLINE const uint16_t *passing_at(const Linear *p, int64_t panel, int64_t i, int64_t step) {
    if (!p->is_gated) return panel_at(p, panel + i, step);
    return panel_at(p, panel + i / 2 + (i % 2 ? panels_of(p) : 0), step);
}

/* Groups of equally many blocks, of equally many rows: the last ones may share some with those before. `packed` has room
   for all of their inputs: [parts][groups][steps of a part][blocks][rows][STEP]. */
INLINE void multiply_groups(const Linear *p, char *packed, int64_t panel, int64_t last, const int64_t groups, const int blocks) {
    float kept[KEPT][GROUP_FLOATS] __attribute__((aligned(64)));
    const int64_t rows = quotient_up(p->rows, blocks * groups), steps = steps_of(p), last_row = p->rows - rows;
    const int64_t step_bytes = blocks * rows * STEP * 2, span = KEPT / groups >> p->is_gated;
    const int64_t parts = quotient_up(steps ? steps : 1, INPUT_BYTES / step_bytes);
    Waiting waiting = {0};
    configure_tiles(rows);
    for (int64_t part = 0; part < parts; part++)
        for (int64_t group = 0, step = steps * part / parts, some = steps * (part + 1) / parts - step; group < groups; group++)
            pack_part(p, packed + (step * groups + group * some) * step_bytes, group * blocks * rows, rows, step, some, blocks);
    __asm__ volatile("" : : "r"(packed) : "memory"); /* GCC 12 does not know that tiles are loaded from it */
    for (; panel < last; panel += span) {
        int64_t count = least(span, last - panel) << p->is_gated;
        for (int64_t part = 0, step = 0, some; part < parts; part++, step += some) {
            some = steps * (part + 1) / parts - step;
            const int64_t next_panel = part + 1 < parts ? panel : panel + span, next_step = part + 1 < parts ? step + some : 0;
            for (int64_t group = 0; group < groups; group++) {
                const int64_t first = group * blocks * rows;
                const char *inputs = packed + (step * groups + group * some) * step_bytes;
                for (int64_t i = 0; i < count; i++) {
                    const uint16_t *weight = passing_at(p, panel, i, step), *coming;
                    if (group) coming = passing_at(p, next_panel, i, next_step);
                    else if (i + 1 < count) coming = passing_at(p, panel, i + 1, step);
                    else coming = passing_at(p, next_panel, 0, next_step);
                    if (groups > 1 && !group) coming += some * HALF_ELEMENTS; /* the first half is left to the other groups */
                    float *sums = kept[i * groups + group];
                    if (blocks == 2) multiply_two(p, inputs, weight, some, rows, sums, part > 0, coming, &waiting);
                    else multiply_four(p, inputs, weight, some, rows, sums, part > 0, coming, LINES(groups), &waiting, blocks);
                    if (part + 1 < parts || (p->is_gated && i % 2 == 0)) continue; /* what is missing comes */
                    const float *gates = p->is_gated ? kept[(i - 1) * groups + group] : 0;
                    waiting = (Waiting){sums, gates, panel + (i >> p->is_gated), rows, first, last_row, blocks * rows, 0, 0};
                }
            }
        }
    }
    write_rest(p, &waiting);
}

/* At most 16 rows, from where they are, since they need few reads. Two panels at a time: memory gives two streams faster
   than one. */
INLINE void multiply_in_place(const Linear *p, int64_t panel, int64_t last) {
    float kept[2][GROUP_FLOATS] __attribute__((aligned(64)));
    const int64_t steps = steps_of(p), stride = p->row_stride * (int64_t)sizeof *p->x;
    Waiting waiting = {0}, second = {0};
    configure_tiles(p->rows);
    for (int turn = 0; panel < last; turn ^= 1) {
        const int is_single = !p->is_gated && panel + 1 == last;
        const uint16_t *weight = panel_at(p, panel, 0), *other = panel_at(p, p->is_gated ? panels_of(p) + panel : panel + !is_single, 0);
        const char *x = (const char *)p->x;
        float *sums = kept[turn], *others = sums + 2 * TILE_FLOATS;
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
        for (int64_t step = 0; step < steps; step++, x += STEP * sizeof *p->x) {
            for (int i = 0; i < STEP_ELEMENTS; i += LINE_ELEMENTS) {
                _mm_prefetch((const char *)(weight + AHEAD + i), _MM_HINT_T0);
                _mm_prefetch((const char *)(other + AHEAD + i), _MM_HINT_T0);
            }
            _tile_loadd(4, x, stride);
            _tile_loadd(6, weight, 64);
            _tile_dpbf16ps(0, 4, 6);
            _tile_loadd(7, weight + HALF_ELEMENTS, 64);
            _tile_dpbf16ps(1, 4, 7);
            _tile_loadd(6, other, 64);
            _tile_dpbf16ps(2, 4, 6);
            _tile_loadd(7, other + HALF_ELEMENTS, 64);
            _tile_dpbf16ps(3, 4, 7);
            weight += STEP_ELEMENTS, other += STEP_ELEMENTS;
            write_some(p, &waiting);
            if (!waiting.left) write_some(p, &second);
        }
        write_rest(p, &waiting);
        write_rest(p, &second);
        _tile_stored(0, sums, 64);
        _tile_stored(1, sums + TILE_FLOATS, 64);
        _tile_stored(2, others, 64);
        _tile_stored(3, others + TILE_FLOATS, 64);
        if (p->is_gated) waiting = (Waiting){others, sums, panel, p->rows, 0, 0, p->rows, 0, 0};
        else {
            waiting = (Waiting){sums, 0, panel, p->rows, 0, 0, p->rows, 0, 0};
            if (!is_single) second = (Waiting){others, 0, panel + 1, p->rows, 0, 0, p->rows, 0, 0};
        }
        panel += p->is_gated ? 1 : 2;
    }
    write_rest(p, &waiting);
    write_rest(p, &second);
}

/* 0, or 1 where memory is short. */
static int multiply_few(const Linear *p, int64_t first, int64_t last) {
    int64_t blocks = quotient_up(p->rows, BLOCK_ROWS), groups = quotient_up(blocks, MOST_BLOCKS);
    if (blocks == 1) {
        multiply_in_place(p, first, last);
    } else {
        blocks = quotient_up(blocks, groups);
        char *packed = aligned_alloc(64, groups * blocks * BLOCK_ROWS * (steps_of(p) + 1) * STEP * sizeof *p->x);
        if (!packed) return 1;
        if (blocks == 2) multiply_groups(p, packed, first, last, 1, 2);
        else if (groups == 1 && blocks == 3) multiply_groups(p, packed, first, last, 1, 3);
        else if (groups == 1) multiply_groups(p, packed, first, last, 1, 4);
        else if (groups == 2 && blocks == 3) multiply_groups(p, packed, first, last, 2, 3);
        else if (groups == 2) multiply_groups(p, packed, first, last, 2, 4);
        else if (blocks == 3) multiply_groups(p, packed, first, last, 3, 3);
        else multiply_groups(p, packed, first, last, 3, 4);
        free(packed);
    }
    _tile_release();
    return 0;
}
