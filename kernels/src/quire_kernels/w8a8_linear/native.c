/* y = (q_x . (q - 128)) * input_scale * scale + bias: 8-bit inputs, 8-bit weights in tiles of 16 outputs.

   The inputs are rounded first, into blocks of up to 16 rows that lie as the tiles of Intel AMX do: 64 bytes of
   each row, then the next 64. Then threads share the weights, two tiles of outputs at a time; while one pair is
   multiplied, the next is asked for. Products and sums are exact, modulo 2^32 until 128 * sum(q_x) is subtracted.
   See rounding.h and products.h. */

#include "team.h"
#include "w8a8.h"

/* What the CPU multiplies 8-bit integers with. */
enum { NO_INSTRUCTIONS = 0, DOT_PRODUCTS = 1, MATRIX_TILES = 2 };

int quire_int8_instructions(void) {
#ifdef QUIRE_AMX_INT8
    if (amx_is_permitted()) return MATRIX_TILES;
#endif
#if defined(__AVX512VNNI__) && defined(__AVX512BW__) && defined(__AVX512VL__)
    return DOT_PRODUCTS;
#else
    return NO_INSTRUCTIONS;
#endif
}

#ifdef __AVX512VNNI__

#include "products.h"
#include "rounding.h"

#define FEW_ROWS 4                  /* up to so many, dot products beat tiles */
#define CHUNK_BYTES (1 << 19)       /* rounded inputs that are multiplied with all weights before the next ones */
#define GROUP_BYTES (1 << 18)       /* weights that are multiplied with a block of rows before the next rows */
#define MAX_PAIRS 8                 /* of tiles among them */

/* What a thread works with: products of two blocks in turn, one to be written while the other is filled. */
typedef struct {
    int32_t products[2][2 * LANES][2 * LANES];
    Pair pairs[MAX_PAIRS];
    Pending pending;
    Ahead ahead;
    int turn;
} Workspace;

INLINE void prepare_pair(const W8A8Linear *p, int64_t column, Pair *pair) {
    int64_t words = p->inputs / 4, tile_bytes = words * STEP, whole = words / WORDS * TILE_BYTES;
    int64_t columns = p->outputs - column < 2 * LANES ? p->outputs - column : 2 * LANES;
    pair->columns = columns;
    pair->words = words;
    pair->out = (char *)p->out + column * element_size(p->dtype);
    pair->results = (Pending){.columns = columns, .stride = p->outputs * element_size(p->dtype), .dtype = p->dtype};
    for (int64_t c = 0; c * LANES < columns; c++) {
        int64_t first = column + c * LANES, last = column + columns;
        pair->weights[c] = p->weight + first / LANES * tile_bytes;
        memcpy(pair->tails[c], pair->weights[c] + whole, tile_bytes - whole);
        pair->results.scales[c] = load_some(DTYPE_FLOAT32, p->scales, first, last);
        if (!p->bias) continue;
        if (p->dtype == DTYPE_BFLOAT16) pair->results.biases[c] = load_some(DTYPE_BFLOAT16, p->bias, first, last);
        else pair->results.biases[c] = load_some(DTYPE_FLOAT32, p->bias, first, last);
    }
}

/* Multiplies one or two blocks of rows with a pair; leaves the products pending. */
INLINE void multiply_blocks(const W8A8Linear *p, const Rounded *rounded, int tiles, int64_t block, int64_t blocks,
                            Pair *pair, Workspace *work) {
    int64_t height = rounded->height, steps = rounded->steps, is_pair = pair->columns > LANES;
    const int8_t *values = rounded->values + block * steps * height * STEP;
    int32_t (*products)[2 * LANES] = work->products[work->turn ^= 1];
    int64_t row = block * height, left = p->rows - row, rows = left < blocks * height ? left : blocks * height;
    Pending *before = &work->pending;
    Ahead *ahead = &work->ahead;
    for (int64_t r = row; r < row + rows; r++) __builtin_prefetch(pair->out + r * pair->results.stride, 1);
#ifdef QUIRE_AMX_INT8
    if (tiles) {
        if (blocks > 1 && is_pair) multiply_tiles(2, 2, height, values, steps, pair, ahead, before, products);
        else if (is_pair) multiply_tiles(1, 2, height, values, steps, pair, ahead, before, products);
        else if (blocks > 1) multiply_tiles(2, 1, height, values, steps, pair, ahead, before, products);
        else multiply_tiles(1, 1, height, values, steps, pair, ahead, before, products);
    }
#endif
    if (!tiles && is_pair) multiply_dots(2, height, values, steps, pair, ahead, products);
    else if (!tiles) multiply_dots(1, height, values, steps, pair, ahead, products);
    write_rows(before, before->rows);
    *before = pair->results;
    before->products = (const int32_t (*)[2 * LANES])products;
    before->rows = rows;
    before->input_scales = rounded->scales + row;
    before->offsets = rounded->offsets + row;
    before->out = pair->out + row * before->stride;
}

/* Tasks are pairs of tiles for a chunk of rows, all pairs for the first chunk first. */
static void run_tasks(const W8A8Linear *p, const Rounded *rounded, int tiles, int64_t chunk, int64_t first, int64_t last) {
    Workspace work __attribute__((aligned(64)));
    int64_t tile_bytes = p->inputs * LANES, pairs = (p->outputs + 2 * LANES - 1) / (2 * LANES);
    int64_t most = GROUP_BYTES / (2 * tile_bytes), together = tiles ? 2 : 1;
    const char *weights_end = (const char *)p->weight + (p->outputs + LANES - 1) / LANES * tile_bytes;
    most = most < 1 ? 1 : most > MAX_PAIRS ? MAX_PAIRS : most;
    memset(&work, 0, sizeof work);
    for (int64_t task = first, group; task < last; task += group) {
        int64_t pair = task % pairs, start = task / pairs * chunk, left = rounded->blocks - start;
        int64_t end = start + (left < chunk ? left : chunk), turns = (end - start + together - 1) / together;
        group = pairs - pair < last - task ? pairs - pair : last - task;
        if (turns == 1) group = 1;
        else if (group > most) group = most;
        for (int64_t i = 0; i < group; i++) prepare_pair(p, (pair + i) * 2 * LANES, &work.pairs[i]);
        work.ahead.next = (const char *)p->weight + (pair + group) * 2 * tile_bytes;
        work.ahead.end = work.ahead.next + group * 2 * tile_bytes;
        if (work.ahead.end > weights_end) work.ahead.end = weights_end;
        work.ahead.lines = task + group == last ? 0 : (2 * LANES + turns - 1) / turns;
        __asm__ volatile("" ::: "memory");
        for (int64_t block = start; block < end; block += together)
            for (int64_t i = 0; i < group; i++)
                multiply_blocks(p, rounded, tiles, block, end - block < together ? end - block : together, &work.pairs[i], &work);
    }
    write_rows(&work.pending, work.pending.rows);
}

static int w8a8_linear(const W8A8Linear *p) {
    int tiles = p->instructions == MATRIX_TILES && p->rows > FEW_ROWS;
    int64_t most = tiles ? LANES : MAX_VNNI_ROWS, blocks = (p->rows + most - 1) / most;
    if (!blocks) return 0;
    int64_t height = (p->rows + blocks - 1) / blocks, steps = (p->inputs + STEP - 1) / STEP;
    int64_t value_bytes = blocks * height * steps * STEP;
    int8_t *values = team_memory(value_bytes + p->rows * (int64_t)(sizeof(float) + sizeof(int32_t)));
    if (!values) return 1;
    float *scales = (float *)(values + value_bytes);
    Rounded rounded = {values, scales, (int32_t *)(scales + p->rows), height, blocks, steps};
    int64_t chunk = CHUNK_BYTES / (steps * STEP * height) + 1;
    chunk += chunk & 1;
    int64_t tasks = (blocks + chunk - 1) / chunk * ((p->outputs + 2 * LANES - 1) / (2 * LANES)), first, last;
    team_share(p->rows, &first, &last);
    if (p->dtype == DTYPE_BFLOAT16) round_rows(DTYPE_BFLOAT16, p, &rounded, first, last);
    else round_rows(DTYPE_FLOAT32, p, &rounded, first, last);
#pragma omp barrier
#ifdef QUIRE_AMX_INT8
    if (tiles) configure_tiles(height);
#endif
    team_share(tasks, &first, &last);
    run_tasks(p, &rounded, tiles, chunk, first, last);
#ifdef QUIRE_AMX_INT8
    if (tiles) _tile_release();
#endif
    free_team_memory(values);
    return 0;
}

#else

static int w8a8_linear(const W8A8Linear *p) { return 1; }

#endif

QUIRE_KERNEL(w8a8_linear, W8A8Linear, w8a8_linear, p->rows *p->inputs * p->outputs < 1 << 18)
