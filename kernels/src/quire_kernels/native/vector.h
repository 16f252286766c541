/* Vectors of 16 floats by the compiler's vector extension (GCC, Clang): one source for AVX-512, AVX2 and NEON. */

#ifndef QUIRE_VECTOR_H
#define QUIRE_VECTOR_H

#include <math.h>
#include <stdint.h>
#include <string.h>
#ifdef __AVX512F__
#include <immintrin.h>
#endif

#define LANES 16
#define INLINE static inline __attribute__((always_inline))

typedef float vec __attribute__((vector_size(64)));
typedef int32_t veci __attribute__((vector_size(64)));
typedef uint32_t vecu __attribute__((vector_size(64)));
typedef uint16_t vech __attribute__((vector_size(32)));

/* Element types, as the Python side numbers them. */
enum { DTYPE_BFLOAT16 = 0, DTYPE_FLOAT32 = 1, DTYPE_INT8 = 2, DTYPE_E4M3 = 3 }; /* the last two are only loaded */

INLINE int is_quantized(int dtype) { return dtype >= DTYPE_INT8; }

INLINE int64_t element_size(int dtype) { return is_quantized(dtype) ? 1 : dtype == DTYPE_BFLOAT16 ? 2 : 4; }

INLINE vec splat(float x) { return (vec){} + x; }

INLINE vec blend(veci mask, vec yes, vec no) { return (vec)((mask & (veci)yes) | (~mask & (veci)no)); }

/* b where either is NaN. */
INLINE vec maximum(vec a, vec b) {
#ifdef __AVX512F__
    return (vec)_mm512_max_ps((__m512)a, (__m512)b);
#else
    return blend(a > b, a, b);
#endif
}

/* 16 bfloat16 values, widened. (GCC 12 splits the conversion into halves where it may choose.) */
INLINE vec widen(vech x) {
#ifdef __AVX512F__
    return (vec)((vecu)_mm512_cvtepu16_epi32((__m256i)x) << 16);
#else
    return (vec)(__builtin_convertvector(x, vecu) << 16);
#endif
}

/* 16 elements of one byte, widened. */
INLINE vec widen_bytes(int dtype, const void *at) {
#ifdef __AVX512F__
    __m128i x = _mm_loadu_si128(at);
    if (dtype == DTYPE_INT8) return (vec)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(x));
    /* as float16 whose exponents are less by 8 */
    __m256i wide = _mm256_cvtepu8_epi16(x), low = _mm256_set1_epi16(0x7f);
    __m256i half = _mm256_or_si256(_mm256_slli_epi16(_mm256_and_si256(wide, low), 7),
                                   _mm256_slli_epi16(_mm256_andnot_si256(low, wide), 8));
    return (vec)_mm512_cvtph_ps(half) * 256.0f;
#else
    if (dtype == DTYPE_INT8) {
        int8_t x __attribute__((vector_size(16)));
        memcpy(&x, at, sizeof x);
        return __builtin_convertvector(x, vec);
    }
    uint8_t x __attribute__((vector_size(16)));
    memcpy(&x, at, sizeof x);
    vecu wide = __builtin_convertvector(x, vecu);
    return (vec)(((wide & 0x80) << 24) | ((wide & 0x7f) << 20)) * 0x1p120f; /* as float32 whose exponents are less by 120 */
#endif
}

/* Rounds to the nearest bfloat16, ties to even; NaN stays NaN. (AVX512_BF16 makes 0 of numbers below 2^-126.) */
INLINE vech narrow(vec x) {
#ifdef __AVX512BF16__
    return (vech)_mm512_cvtneps_pbh((__m512)x);
#else
    vecu bits = (vecu)x;
    vecu rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    vecu nan = (vecu)(x != x);
    vecu result = (nan & 0x7fc0) | (~nan & rounded);
#ifdef __AVX512F__
    return (vech)_mm512_cvtepi32_epi16((__m512i)result);
#else
    return __builtin_convertvector(result, vech);
#endif
#endif
}

INLINE vec round_to(int dtype, vec x) { return dtype == DTYPE_BFLOAT16 ? widen(narrow(x)) : x; }

INLINE const void *element(int dtype, const void *base, int64_t index) {
    return (const char *)base + index * element_size(dtype);
}

INLINE vec load(int dtype, const void *base, int64_t index) {
    const void *at = element(dtype, base, index);
    if (is_quantized(dtype)) return widen_bytes(dtype, at);
    if (dtype == DTYPE_BFLOAT16) {
        vech x;
        memcpy(&x, at, sizeof x);
        return widen(x);
    }
    vec x;
    memcpy(&x, at, sizeof x);
    return x;
}

INLINE void store(int dtype, void *base, int64_t index, vec x) {
    void *at = (char *)base + index * element_size(dtype);
    if (dtype == DTYPE_BFLOAT16) {
        vech h = narrow(x);
        memcpy(at, &h, sizeof h);
    } else {
        memcpy(at, &x, sizeof x);
    }
}

/* The first `count` < 16 elements; the other lanes are 0. */
INLINE vec load_part(int dtype, const void *base, int64_t index, int64_t count) {
    union {
        vec wide;
        vech half;
        char bytes[64];
    } x = {};
    memcpy(x.bytes, element(dtype, base, index), count * element_size(dtype));
    if (is_quantized(dtype)) return widen_bytes(dtype, x.bytes);
    return dtype == DTYPE_BFLOAT16 ? widen(x.half) : x.wide;
}

INLINE void store_part(int dtype, void *base, int64_t index, vec x, int64_t count) {
    union {
        vec wide;
        vech half;
        char bytes[64];
    } y;
    if (dtype == DTYPE_BFLOAT16) y.half = narrow(x);
    else y.wide = x;
    memcpy((char *)base + index * element_size(dtype), y.bytes, count * element_size(dtype));
}

/* Up to 16 of `size` elements from `at` on. */
INLINE vec load_some(int dtype, const void *base, int64_t at, int64_t size) {
    return size - at >= LANES ? load(dtype, base, at) : load_part(dtype, base, at, size - at);
}

INLINE void store_some(int dtype, void *base, int64_t at, vec x, int64_t size) {
    if (size - at >= LANES) store(dtype, base, at, x);
    else store_part(dtype, base, at, x, size - at);
}

#define ROTATED(x, n) __builtin_shuffle(x, (LANE_NUMBERS + (n)) & (LANES - 1))
#define LANE_NUMBERS ((veci){0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15})

INLINE float sum_lanes(vec x) {
    x += ROTATED(x, 8);
    x += ROTATED(x, 4);
    x += ROTATED(x, 2);
    x += ROTATED(x, 1);
    return x[0];
}

INLINE float max_lanes(vec x) {
    x = maximum(x, ROTATED(x, 8));
    x = maximum(x, ROTATED(x, 4));
    x = maximum(x, ROTATED(x, 2));
    x = maximum(x, ROTATED(x, 1));
    return x[0];
}

/* e^x: relative error below 2e-7 where |x| < 87; 0 (or next to it) below, +inf above 88.7, NaN for NaN. */
INLINE vec exponential(vec x) {
    const float log2e = 1.44269504088896341f, ln2_high = 0.693359375f, ln2_low = -2.12194440e-4f;
#ifdef __AVX512F__
    x = (vec)_mm512_min_ps(_mm512_set1_ps(90.0f), _mm512_max_ps(_mm512_set1_ps(-110.0f), (__m512)x));
    __m512 n = _mm512_roundscale_ps((__m512)(x * log2e), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    vec r = x - (vec)n * ln2_high - (vec)n * ln2_low;
#else
    const float magic = 12582912.0f; /* 1.5 * 2^23: adding it rounds to an integer */
    veci tiny = x < -87.0f, huge = x > 88.0f;
    vec clamped = blend(tiny, splat(-87.0f), blend(huge, splat(88.0f), x));
    vec shifted = clamped * log2e + magic;
    vec n = shifted - magic;
    vec r = clamped - n * ln2_high - n * ln2_low;
#endif
    vec p = splat(1.9875691500e-4f);
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
#ifdef __AVX512F__
    return (vec)_mm512_scalef_ps((__m512)p, n);
#else
    veci power = ((veci)shifted - (veci)splat(magic) + 127) << 23;
    vec result = p * (vec)power;
    result = blend(tiny, splat(0.0f), result);
    return blend(huge, splat(INFINITY), result);
#endif
}

/* 1 / x of x > 0, to the precision of the type that it is for. */
INLINE vec reciprocal(int dtype, vec x) {
#ifdef __AVX512F__
    if (dtype == DTYPE_BFLOAT16) {
        vec y = (vec)_mm512_rcp14_ps((__m512)x);
        return blend(x > 3.4e38f, splat(0.0f), y + y * (1.0f - x * y));
    }
#endif
    return 1.0f / x;
}

/* For each of 16 vectors the sum of its lanes, in the lane of its number. */
INLINE vec sum_rows(const vec rows[LANES]) {
    vec half[8], quarter[4], eighth[2];
    for (int i = 0; i < 8; i++) {
        vec a = rows[2 * i], b = rows[2 * i + 1];
        half[i] = __builtin_shuffle(a, b, (veci){0, 16, 2, 18, 4, 20, 6, 22, 8, 24, 10, 26, 12, 28, 14, 30}) +
                  __builtin_shuffle(a, b, (veci){1, 17, 3, 19, 5, 21, 7, 23, 9, 25, 11, 27, 13, 29, 15, 31});
    }
    for (int i = 0; i < 4; i++) {
        vec a = half[2 * i], b = half[2 * i + 1];
        quarter[i] = __builtin_shuffle(a, b, (veci){0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29}) +
                     __builtin_shuffle(a, b, (veci){2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30, 31});
    }
    for (int i = 0; i < 2; i++) {
        vec a = quarter[2 * i], b = quarter[2 * i + 1];
        eighth[i] = __builtin_shuffle(a, b, (veci){0, 1, 2, 3, 16, 17, 18, 19, 8, 9, 10, 11, 24, 25, 26, 27}) +
                    __builtin_shuffle(a, b, (veci){4, 5, 6, 7, 20, 21, 22, 23, 12, 13, 14, 15, 28, 29, 30, 31});
    }
    vec a = eighth[0], b = eighth[1];
    return __builtin_shuffle(a, b, (veci){0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23}) +
           __builtin_shuffle(a, b, (veci){8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31});
}

#endif
