/* Penalties, the likeliest token, and draws by temperature, min_p, top_k and top_p: each row of logits by one thread.

   Filters look at candidates only: tokens above a bound that is known before, from the largest logits of blocks (top_k)
   or from what tokens below it can weigh together (top_p). The bits of -value order candidates, so that three histograms
   of them find a threshold without sorting. Weights are float32, sums of more than a block float64. */

#include "vector.h"

#include <omp.h>

#define BLOCK 256
#define NO_TOKEN (-1)

typedef struct {
    const void *row;
    int64_t size;
    float best, temperature, low; /* scaled logits below `low` weigh nothing */
} Logits;

typedef struct {
    float *blocks;           /* one per block */
    float *values, *weights; /* candidates, padded to whole vectors */
    int32_t *ids;
} Scratch;

INLINE vec load_or_lowest(int dtype, const void *row, int64_t at, int64_t size) {
    if (size - at >= LANES) return load(dtype, row, at);
    veci inside = LANE_NUMBERS < (veci){} + (int32_t)(size - at);
    return blend(inside, load_part(dtype, row, at, size - at), splat(-INFINITY));
}

INLINE int64_t block_end(int64_t first, int64_t size) { return size - first < BLOCK ? size : first + BLOCK; }

/* The lowest index of the largest value, which goes to `best`; NO_TOKEN where that is not finite or there is NaN.
   `blocks`: null, or where the largest value of each block goes. */
INLINE int64_t find_best(int dtype, const void *row, int64_t size, float *best, float *blocks) {
    vec highest = splat(-INFINITY);
    veci block_of = {}, is_nan = {};
    for (int64_t first = 0; first < size; first += BLOCK) {
        int64_t last = block_end(first, size), at = first;
        vec high[4] = {highest, highest, highest, highest};
        if (blocks) high[0] = high[1] = high[2] = high[3] = splat(-INFINITY);
        for (; at + 4 * LANES <= last; at += 4 * LANES)
            for (int i = 0; i < 4; i++) {
                vec x = load(dtype, row, at + i * LANES);
                is_nan |= x != x;
                high[i] = maximum(high[i], x);
            }
        for (; at < last; at += LANES) {
            vec x = load_or_lowest(dtype, row, at, size);
            is_nan |= x != x;
            high[0] = maximum(high[0], x);
        }
        vec most = maximum(maximum(high[0], high[1]), maximum(high[2], high[3]));
        if (blocks) blocks[first / BLOCK] = max_lanes(most);
        veci better = most > highest;
        block_of = (better & (int32_t)(first / BLOCK)) | (~better & block_of);
        highest = blend(better, most, highest);
    }
    *best = max_lanes(highest);
    int32_t lowest = INT32_MAX, nans = 0;
    for (int lane = 0; lane < LANES; lane++) {
        nans |= is_nan[lane];
        if (highest[lane] == *best && block_of[lane] < lowest) lowest = block_of[lane];
    }
    if (nans || !isfinite(*best)) return NO_TOKEN;
    for (int64_t at = lowest * (int64_t)BLOCK;; at += LANES) {
        vec x = load_or_lowest(dtype, row, at, size);
        for (int lane = 0; lane < LANES; lane++)
            if (x[lane] == *best) return at + lane;
    }
}

INLINE vec scaled(int dtype, const Logits *p, int64_t at) {
    vec x = (load_or_lowest(dtype, p->row, at, p->size) - p->best) / p->temperature;
    return blend(x < p->low, splat(-INFINITY), x);
}

/* Writes the sum of each block's weights; gives the sum of all. */
INLINE double sum_blocks(int dtype, const Logits *p, float *sums) {
    double total = 0;
    for (int64_t first = 0; first < p->size; first += BLOCK) {
        vec sum = {};
        for (int64_t at = first; at < block_end(first, p->size); at += LANES) sum += exponential(scaled(dtype, p, at));
        sums[first / BLOCK] = sum_lanes(sum);
        total += sums[first / BLOCK];
    }
    return total;
}

/* The first index at which the cumulated weights pass `goal`, which becomes its distance from there. It is kept below
   their total, which is positive. */
static int64_t locate(const float *weights, int64_t count, double *goal) {
    double total = 0, end = 0;
    for (int64_t i = 0; i < count; i++) total += weights[i];
    double bounded = fmin(*goal, nextafter(total, 0.0));
    for (int64_t i = 0; i < count; i++) {
        double start = end;
        end += weights[i];
        if (end > bounded) {
            *goal = fmax(bounded - start, 0.0);
            return i;
        }
    }
    return NO_TOKEN; /* not reached: the last end is the total */
}

INLINE int64_t draw_from_all(int dtype, const Logits *p, double draw, float *sums) {
    double goal = draw * sum_blocks(dtype, p, sums);
    int64_t first = BLOCK * locate(sums, (p->size + BLOCK - 1) / BLOCK, &goal), last = block_end(first, p->size);
    float weights[BLOCK];
    for (int64_t at = first; at < last; at += LANES) {
        vec weight = exponential(scaled(dtype, p, at));
        memcpy(weights + (at - first), &weight, sizeof weight);
    }
    return first + locate(weights, last - first, &goal);
}

/* Of values up to 0, largest first: the bits of the one with which `need` is reached, and the weight before it. */
typedef struct {
    uint32_t key;
    double before;
} Cut;

static uint32_t key_of(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits & 0x7fffffff;
}

/* `weights`: null where each value counts as one. */
static Cut find_cut(const float *values, const float *weights, int64_t count, double need) {
    static const int shifts[] = {20, 10, 0}, widths[] = {11, 10, 10};
    Cut cut = {0, 0.0};
    for (int level = 0; level < 3; level++) {
        double mass[2048] = {}, next = cut.before;
        uint32_t chosen = 0, digits = 1u << widths[level];
        for (int64_t i = 0; i < count; i++) {
            uint32_t digit = key_of(values[i]) >> shifts[level];
            if (digit >> widths[level] == cut.key) mass[digit & (digits - 1)] += weights ? weights[i] : 1.0;
        }
        for (uint32_t digit = 0; digit < digits && next < need; digit++) {
            if (mass[digit] == 0.0) continue;
            cut.before = next;
            chosen = digit;
            next += mass[digit];
        }
        cut.key = cut.key << widths[level] | chosen;
    }
    return cut;
}

/* Drops candidates after the cut, and all but the first `ties` of those at it; gives how many are left. */
static int64_t keep(const Scratch *s, int64_t count, uint32_t key, int64_t ties) {
    int64_t kept = 0;
    for (int64_t i = 0; i < count; i++) {
        uint32_t found = key_of(s->values[i]);
        if (found > key || (found == key && ties-- <= 0)) continue;
        s->values[kept] = s->values[i];
        s->weights[kept] = s->weights[i];
        s->ids[kept++] = s->ids[i];
    }
    return kept;
}

/* Candidates, in the order of ids, with their weights. `s->blocks` holds the largest scaled logits. */
INLINE int64_t gather(int dtype, const Logits *p, const Scratch *s) {
    int64_t count = 0;
    for (int64_t first = 0; first < p->size; first += BLOCK) {
        if (s->blocks[first / BLOCK] < p->low) continue;
        for (int64_t at = first; at < block_end(first, p->size); at += LANES) {
            vec x = scaled(dtype, p, at);
            for (int lane = 0; lane < LANES; lane++) {
                if (x[lane] == -INFINITY) continue;
                s->values[count] = x[lane];
                s->ids[count++] = (int32_t)(at + lane);
            }
        }
    }
    for (int64_t at = 0; at < count; at += LANES) {
        vec x;
        memcpy(&x, s->values + at, sizeof x);
        x = exponential(x);
        memcpy(s->weights + at, &x, sizeof x);
    }
    return count;
}

static double sum(const float *weights, int64_t count) {
    double total = 0;
    for (int64_t i = 0; i < count; i++) total += weights[i];
    return total;
}

/* `top_k` is 0 or less than the size; one of the two drops something. */
INLINE int64_t draw_filtered(int dtype, Logits *p, int64_t top_k, double top_p, double draw, const Scratch *s) {
    int64_t blocks = (p->size + BLOCK - 1) / BLOCK;
    double total = 0;
    for (int64_t i = 0; i < blocks; i++) s->blocks[i] = (s->blocks[i] - p->best) / p->temperature;
    if (top_k == 0) {
        total = sum_blocks(dtype, p, s->weights);
        /* All tokens below this weigh less than 1 - top_p of the total. */
        p->low = fmaxf(p->low, (float)(log1p(-top_p) + log(total / (double)p->size) - 1.0));
    } else if (top_k <= blocks) { /* as many blocks, so at least as many tokens, reach this */
        uint32_t key = find_cut(s->blocks, 0, blocks, (double)top_k).key;
        float least;
        memcpy(&least, &key, sizeof least);
        p->low = fmaxf(p->low, -least);
    }
    int64_t count = gather(dtype, p, s);
    if (top_k && count > top_k) {
        Cut cut = find_cut(s->values, 0, count, (double)top_k);
        count = keep(s, count, cut.key, top_k - (int64_t)cut.before);
    }
    if (top_p < 1.0) {
        double need = top_p * (top_k ? sum(s->weights, count) : total);
        Cut cut = find_cut(s->values, s->weights, count, need);
        float value;
        memcpy(&value, &cut.key, sizeof value);
        double ties = ceil((need - cut.before) / exponential(splat(-value))[0]);
        count = keep(s, count, cut.key, (int64_t)fmin(fmax(ties, 1.0), (double)count));
    }
    double goal = draw * sum(s->weights, count);
    return s->ids[locate(s->weights, count, &goal)];
}

INLINE int64_t sample_row(int dtype, const void *row, int64_t size, float temperature, double min_p, int64_t top_k,
                          double top_p, double draw, const Scratch *s) {
    if (top_k >= size) top_k = 0;
    int is_filtered = top_k > 0 || top_p < 1.0;
    Logits p = {row, size, 0.0f, temperature, min_p > 0.0 ? (float)log(min_p) : -INFINITY};
    int64_t best = find_best(dtype, row, size, &p.best, temperature > 0.0f && is_filtered ? s->blocks : 0);
    if (best == NO_TOKEN || !(temperature > 0.0f)) return best;
    return is_filtered ? draw_filtered(dtype, &p, top_k, top_p, draw, s) : draw_from_all(dtype, &p, draw, s->blocks);
}

/* logits: [rows, size], `stride` elements from row to row. ids: [rows]. */
void quire_sample_greedy(int dtype, const void *logits, int64_t *ids, int64_t rows, int64_t size, int64_t stride,
                         int threads) {
    if (rows * size < 16384) threads = 1;
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1)
    for (int64_t row = 0; row < rows; row++) {
        const void *from = element(dtype, logits, row * stride);
        float best;
        if (dtype == DTYPE_BFLOAT16) ids[row] = find_best(DTYPE_BFLOAT16, from, size, &best, 0);
        else ids[row] = find_best(DTYPE_FLOAT32, from, size, &best, 0);
    }
}

/* The other parameters: [rows] each. scratch: [threads, width], of which `Scratch` takes a float for each block and three
   for each of their tokens. */
void quire_sample_tokens(int dtype, const void *logits, const double *temperature, const double *min_p,
                         const int64_t *top_k, const double *top_p, const double *draws, int64_t *ids, float *scratch,
                         int64_t rows, int64_t size, int64_t stride, int64_t width, int threads) {
    int64_t blocks = (size + BLOCK - 1) / BLOCK, padded = blocks * BLOCK;
#pragma omp parallel for num_threads(threads) schedule(dynamic) if (threads > 1)
    for (int64_t row = 0; row < rows; row++) {
        float *mine = scratch + omp_get_thread_num() * width;
        Scratch s = {mine, mine + blocks, mine + blocks + padded, (int32_t *)(mine + blocks + 2 * padded)};
        const void *from = element(dtype, logits, row * stride);
        float t = (float)temperature[row];
        if (dtype == DTYPE_BFLOAT16)
            ids[row] = sample_row(DTYPE_BFLOAT16, from, size, t, min_p[row], top_k[row], top_p[row], draws[row], &s);
        else ids[row] = sample_row(DTYPE_FLOAT32, from, size, t, min_p[row], top_k[row], top_p[row], draws[row], &s);
    }
}

/* logits: [rows, .], `stride` elements from row to row; token_ids, counts: [offsets[rows]]; offsets: [rows + 1]. */
void quire_sample_penalties(float *logits, const int64_t *token_ids, const int64_t *counts, const int64_t *offsets,
                            const float *repetition, const float *frequency, const float *presence, int64_t rows,
                            int64_t stride, int threads) {
    if (offsets[rows] < 16384) threads = 1;
#pragma omp parallel for num_threads(threads) schedule(dynamic) if (threads > 1)
    for (int64_t row = 0; row < rows; row++)
        for (int64_t i = offsets[row]; i < offsets[row + 1]; i++) {
            float *at = logits + row * stride + token_ids[i];
            float value = *at > 0.0f ? *at / repetition[row] : *at * repetition[row];
            *at = value - frequency[row] * (float)counts[i] - (counts[i] > 0 ? presence[row] : 0.0f);
        }
}
