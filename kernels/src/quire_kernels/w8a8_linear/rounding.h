/* The inputs, divided by their scales and rounded to 8 bits, where products read them. */

#include "w8a8.h"

/* How a row is divided by its scale, from the fastest to the most general. */
enum { BY_RECIPROCAL, BY_REMAINDERS, BY_DIVISION };

/* Divisors: a scale, the nearest float to its reciprocal, and what that lacks. */
typedef struct {
    __m512 scale, inverse, inverse_rest;
} Divisor;

/* x / scale rounded to float32, then to the nearest integer, ties to even, at most 32767 in magnitude. */
INLINE __m512i divided(int way, __m512 x, const Divisor *by) {
    const __m512 limit = _mm512_set1_ps(32767.0f);
    __m512 y = by->inverse, q;
    if (way == BY_RECIPROCAL) { /* for bfloat16 within the range of the row: the tests try them all */
        q = _mm512_fmadd_ps(x, y, _mm512_mul_ps(x, by->inverse_rest));
    } else if (way == BY_REMAINDERS) { /* correctly rounded (Markstein 1990): two corrections by exact remainders */
        __m512 bound = _mm512_mul_ps(by->scale, _mm512_set1_ps(256.0f)); /* no overflow, no change after rounding */
        x = _mm512_min_ps(_mm512_max_ps(x, _mm512_sub_ps(_mm512_setzero_ps(), bound)), bound);
        q = _mm512_mul_ps(x, y);
        q = _mm512_fmadd_ps(_mm512_fnmadd_ps(q, by->scale, x), y, q);
        q = _mm512_fmadd_ps(_mm512_fnmadd_ps(q, by->scale, x), y, q);
    } else { /* NaN, infinity over infinity among them, becomes 0 */
        q = _mm512_div_ps(x, by->scale);
        q = _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(q, q, _CMP_ORD_Q), q);
        q = _mm512_min_ps(_mm512_max_ps(q, _mm512_sub_ps(_mm512_setzero_ps(), limit)), limit);
    }
    return _mm512_cvtps_epi32(q);
}

/* The bits of the largest magnitude in float32; those of NaN are above all others. */
INLINE int32_t largest_bits(int dtype, const void *row, int64_t size) {
    const __m512i magnitude = _mm512_set1_epi32(0x7fffffff), half_magnitude = _mm512_set1_epi16(0x7fff);
    __m512i largest = _mm512_setzero_si512(), halves = largest;
    int64_t at = 0;
    if (dtype == DTYPE_BFLOAT16)
        for (; at + 2 * LANES <= size; at += 2 * LANES) {
            __m512i x = _mm512_loadu_si512(element(dtype, row, at));
            halves = _mm512_max_epi16(halves, _mm512_and_si512(x, half_magnitude));
        }
    largest = _mm512_max_epi32(_mm512_slli_epi32(halves, 16), _mm512_maskz_mov_epi16(0xaaaaaaaa, halves));
    for (; at < size; at += LANES)
        largest = _mm512_max_epi32(largest, _mm512_and_si512((__m512i)load_some(dtype, row, at, size), magnitude));
    return _mm512_reduce_max_epi32(largest);
}

/* Inputs of a step, the even ones of each 32 apart from the odd ones; `left` is how many there are. */
INLINE void load_step(int dtype, const void *from, int64_t left, __m512 even[2], __m512 odd[2]) {
    if (dtype == DTYPE_BFLOAT16) {
        for (int i = 0; i < 2; i++, left -= 32) {
            __mmask32 some = left >= 32 ? 0xffffffff : left > 0 ? (1u << left) - 1 : 0;
            __m512i both = _mm512_maskz_loadu_epi16(some, (const char *)from + 64 * i);
            even[i] = (__m512)_mm512_slli_epi32(both, 16);
            odd[i] = (__m512)_mm512_and_si512(both, _mm512_set1_epi32((int32_t)0xffff0000));
        }
        return;
    }
    const __m512i evens = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
    const __m512i odds = _mm512_or_si512(evens, _mm512_set1_epi32(1));
    for (int i = 0; i < 2; i++, left -= 32) {
        __m512 low = (__m512)load_some(dtype, from, 32 * i, left > 0 ? 32 * i + left : 32 * i);
        __m512 high = (__m512)load_some(dtype, from, 32 * i + 16, left > 16 ? 32 * i + left : 32 * i + 16);
        even[i] = _mm512_permutex2var_ps(low, evens, high);
        odd[i] = _mm512_permutex2var_ps(low, odds, high);
    }
}

/* Rounds a step of a row; in words of four inputs in the order 0, 2, 1, 3 (see quire.ops.tiles). */
INLINE __m512i round_step(int dtype, int way, const void *from, int64_t left, const Divisor *by) {
    const __m512i interleaved = _mm512_broadcast_i32x4(_mm_setr_epi8(0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15));
    const __m512i halves = _mm512_setr_epi64(0, 2, 4, 6, 1, 3, 5, 7);
    __m512 even[2], odd[2];
    load_step(dtype, from, left, even, odd);
    __m512i first = _mm512_packs_epi32(divided(way, even[0], by), divided(way, odd[0], by));
    __m512i second = _mm512_packs_epi32(divided(way, even[1], by), divided(way, odd[1], by));
    __m512i octets = _mm512_shuffle_epi8(_mm512_packs_epi16(first, second), interleaved);
    return _mm512_permutexvar_epi64(halves, octets);
}

/* Rounds a row; returns the sum of its integers. */
INLINE int32_t round_row(int dtype, int way, const void *row, int64_t size, float scale, int8_t *to, int64_t stride) {
    const __m512i ones = _mm512_set1_epi8(1);
    float inverse = 1.0f / scale;
    Divisor by = {_mm512_set1_ps(scale), _mm512_set1_ps(inverse), _mm512_set1_ps(fmaf(-scale, inverse, 1.0f) * inverse)};
    __m512i sum = _mm512_setzero_si512();
    for (int64_t at = 0; at < size; at += STEP, to += stride) {
        const void *from = element(dtype, row, at);
        __m512i octets = size - at >= STEP ? round_step(dtype, way, from, STEP, &by) : round_step(dtype, way, from, size - at, &by);
        sum = _mm512_dpbusd_epi32(sum, ones, octets);
        _mm512_storeu_si512(to, octets);
    }
    return _mm512_reduce_add_epi32(sum);
}

INLINE void round_rows(int dtype, const W8A8Linear *p, const Rounded *rounded, int64_t first, int64_t last) {
    for (int64_t r = first; r < last; r++) {
        const void *row = element(dtype, p->x, r * p->stride);
        int32_t bits = largest_bits(dtype, row, p->inputs), sum;
        float largest, scale;
        memcpy(&largest, &bits, sizeof bits);
        if (p->input_scale) scale = *p->input_scale;
        else scale = largest == 0 ? 1.0f : largest / 127.5f;
        int64_t block = r / rounded->height, stride = rounded->height * STEP;
        int8_t *to = rounded->values + block * rounded->steps * stride + r % rounded->height * STEP;
        int usual = scale > 0x1p-100f && scale < 0x1p+100f; /* no remainder under- or overflows */
        if (!usual) sum = round_row(dtype, BY_DIVISION, row, p->inputs, scale, to, stride);
        else if (p->input_scale || dtype != DTYPE_BFLOAT16)
            sum = round_row(dtype, BY_REMAINDERS, row, p->inputs, scale, to, stride);
        else sum = round_row(dtype, BY_RECIPROCAL, row, p->inputs, scale, to, stride);
        rounded->offsets[r] = (int32_t)(128u * (uint32_t)sum);
        rounded->scales[r] = largest == largest ? scale : largest;
    }
}
