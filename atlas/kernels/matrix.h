// Small dense products and what goes with them, in the vector extensions that GCC and Clang share.
//
// All matrices are row-major floats; a leading dimension is the distance of two rows. The vectorised dimension ("lanes")
// is a multiple of 8, the number of rows too: callers pad.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <exception>
#include <vector>

namespace atlas {

using Index = std::int64_t;
typedef float Eight __attribute__((vector_size(32)));
typedef float Sixteen __attribute__((vector_size(64)));

#ifdef __AVX512F__
constexpr bool WIDE = true;  // 32 registers of 16 floats
#else
constexpr bool WIDE = false;
#endif

template <class Lanes>
inline Lanes load(const float* from) {
    Lanes value;
    std::memcpy(&value, from, sizeof value);
    return value;
}

template <class Lanes>
inline void store(float* to, Lanes value) {
    std::memcpy(to, &value, sizeof value);
}

enum class Into { set, add, subtract };

constexpr Index TILE = 8;  // rows of a tile; its accumulators live in registers

// One tile of c = a b, or base +- a b.  TRANSPOSED: a is stored [K, rows].
template <class Lanes, int VECTORS, bool TRANSPOSED, Into INTO>
inline void tile(
    Index depth, const float* a, Index lda, const float* b, Index ldb, float* c, Index ldc, const float* base
) {
    constexpr Index WIDTH = sizeof(Lanes) / sizeof(float);
    Lanes sums[TILE][VECTORS] = {};
    for (Index k = 0; k < depth; ++k) {
        Lanes right[VECTORS];
#pragma GCC unroll 4
        for (int v = 0; v < VECTORS; ++v) right[v] = load<Lanes>(b + k * ldb + v * WIDTH);
#pragma GCC unroll 8
        for (int m = 0; m < TILE; ++m) {
            const float left = TRANSPOSED ? a[k * lda + m] : a[m * lda + k];
#pragma GCC unroll 4
            for (int v = 0; v < VECTORS; ++v) sums[m][v] += left * right[v];
        }
    }
#pragma GCC unroll 8
    for (int m = 0; m < TILE; ++m) {
#pragma GCC unroll 4
        for (int v = 0; v < VECTORS; ++v) {
            const Index at = m * ldc + v * WIDTH;
            if (INTO == Into::set) store(c + at, sums[m][v]);
            if (INTO == Into::add) store(c + at, load<Lanes>(base + at) + sums[m][v]);
            if (INTO == Into::subtract) store(c + at, load<Lanes>(base + at) - sums[m][v]);
        }
    }
}

template <class Lanes, int VECTORS, bool TRANSPOSED, Into INTO>
inline void columns(
    Index rows, Index depth, const float* a, Index lda, const float* b, Index ldb, float* c, Index ldc, const float* base
) {
    for (Index m = 0; m < rows; m += TILE) {
        const float* left = TRANSPOSED ? a + m : a + m * lda;
        tile<Lanes, VECTORS, TRANSPOSED, INTO>(depth, left, lda, b, ldb, c + m * ldc, ldc, base + m * ldc);
    }
}

// c = a b, or base +- a b; without a base c +- a b.
template <bool TRANSPOSED, Into INTO>
void product(
    Index rows, Index lanes, Index depth, const float* a, Index lda, const float* b, Index ldb, float* c, Index ldc,
    const float* base = nullptr
) {
    base = base ? base : c;
    Index n = 0;
    if (WIDE) {
        for (; n + 32 <= lanes; n += 32)
            columns<Sixteen, 2, TRANSPOSED, INTO>(rows, depth, a, lda, b + n, ldb, c + n, ldc, base + n);
        for (; n + 16 <= lanes; n += 16)
            columns<Sixteen, 1, TRANSPOSED, INTO>(rows, depth, a, lda, b + n, ldb, c + n, ldc, base + n);
    }
    for (; n < lanes; n += 8) columns<Eight, 1, TRANSPOSED, INTO>(rows, depth, a, lda, b + n, ldb, c + n, ldc, base + n);
}

inline void transpose8(const float* from, Index from_step, float* to, Index to_step) {
    Eight r[8], s[8];
    for (int i = 0; i < 8; ++i) r[i] = load<Eight>(from + i * from_step);
    for (int i = 0; i < 8; i += 2) {
        s[i] = __builtin_shufflevector(r[i], r[i + 1], 0, 8, 2, 10, 4, 12, 6, 14);
        s[i + 1] = __builtin_shufflevector(r[i], r[i + 1], 1, 9, 3, 11, 5, 13, 7, 15);
    }
    for (int i = 0; i < 8; i += 4) {
        for (int j = 0; j < 2; ++j) {
            r[i + j] = __builtin_shufflevector(s[i + j], s[i + j + 2], 0, 1, 8, 9, 4, 5, 12, 13);
            r[i + j + 2] = __builtin_shufflevector(s[i + j], s[i + j + 2], 2, 3, 10, 11, 6, 7, 14, 15);
        }
    }
    for (int i = 0; i < 4; ++i) {
        store(to + i * to_step, __builtin_shufflevector(r[i], r[i + 4], 0, 1, 2, 3, 8, 9, 10, 11));
        store(to + (i + 4) * to_step, __builtin_shufflevector(r[i], r[i + 4], 4, 5, 6, 7, 12, 13, 14, 15));
    }
}

// to[j][i] = from[i][j], i < rows, j < width
inline void transpose(Index rows, Index width, const float* from, Index from_step, float* to, Index to_step) {
    const Index whole = rows / 8 * 8;
    for (Index i = 0; i < whole; i += 8)
        for (Index j = 0; j < width; j += 8) transpose8(from + i * from_step + j, from_step, to + j * to_step + i, to_step);
    for (Index i = whole; i < rows; ++i)
        for (Index j = 0; j < width; ++j) to[j * to_step + i] = from[i * from_step + j];
}

// NaN stays NaN; below -87 the result is that of -87, about 1e-38.
template <class Lanes>
inline Lanes exponential(Lanes x) {
    const Lanes low = Lanes{} - 87.0f, high = Lanes{} + 87.0f;
    Lanes y = x < low ? low : x;
    y = y > high ? high : y;
    const float shift = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
    const Lanes power = (y * 1.44269504f + shift) - shift;
    Lanes r = y - power * 0.693359375f;
    r = r + power * 2.12194440e-4f;
    Lanes e = r * 1.9875691500e-4f + 1.3981999507e-3f;
    e = e * r + 8.3334519073e-3f;
    e = e * r + 4.1665795894e-2f;
    e = e * r + 1.6666665459e-1f;
    e = e * r + 5.0000001201e-1f;
    e = e * r * r + r + 1.0f;
    typedef std::int32_t Integers __attribute__((vector_size(sizeof(Lanes))));
    const Integers exponent = (__builtin_convertvector(power, Integers) + 127) << 23;
    Lanes scale;
    std::memcpy(&scale, &exponent, sizeof scale);
    return e * scale;
}

template <class Lanes>
inline Lanes sigmoid(Lanes x) {
    return 1.0f / (1.0f + exponential(-x));
}

// body(zeros, i) for every vector of a row of `width` floats, a multiple of 8, from place i on.
template <class Body>
inline void for_vectors(Index width, Body body) {
    Index i = 0;
    if (WIDE)
        for (; i + 16 <= width; i += 16) body(Sixteen{}, i);
    for (; i < width; i += 8) body(Eight{}, i);
}

inline float total(Eight x) { return ((x[0] + x[1]) + (x[2] + x[3])) + ((x[4] + x[5]) + (x[6] + x[7])); }

inline float dot(const float* a, const float* b, Index width) {
    Eight sum = {};
    for (Index i = 0; i < width; i += 8) sum += load<Eight>(a + i) * load<Eight>(b + i);
    return total(sum);
}

// Tokens as lanes: the narrowest vector, or a multiple of the widest.
inline Index padded(Index tokens) { return tokens <= 8 ? 8 : (tokens + 15) / 16 * 16; }

// A tensor as atlas/kernels/call.py passes it: up to three leading dimensions with their strides, in elements, then a
// contiguous width. `data` is null for a tensor that is left out.
extern "C" struct Tensor {
    float* data;
    Index first, second, third;  // strides
    float* at(Index n, Index t) const { return data + n * first + t * second; }
    float* at(Index b, Index h, Index t) const { return data + b * first + h * second + t * third; }
    Tensor swapped() const { return {data, first, third, second}; }  // [B, T, H, d] as [B, H, T, d]
};

// Runs `body` for every row, rows shared out among threads. An exception must not leave a thread: 1 says that memory ran
// out, 0 that all went well.
template <class Body>
int for_rows(Index rows, Index threads, Body body) {
    int failed = 0;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (Index n = 0; n < rows; ++n) {
        try {
            body(n);
        } catch (const std::exception&) {
#pragma omp atomic write
            failed = 1;
        }
    }
    return failed;
}

// Tokens first..first+count of row n -> [width, lanes] with `step` floats from line to line, filled up with zeros.
inline void take(const Tensor& from, Index n, Index first, Index count, Index width, Index lanes, float* to, Index step) {
    transpose(count, width, from.at(n, first), from.second, to, step);
    if (count == lanes) return;
    for (Index i = 0; i < width; ++i) std::fill(to + i * step + count, to + i * step + lanes, 0.0f);
}

// Causal: of a square [key, query], the entries of keys up to the query.
inline void keep_upper(float* gram, Index lanes) {
    for (Index j = 0; j < lanes; ++j) std::fill(gram + j * lanes, gram + j * lanes + j, 0.0f);
}

// Working memory of a thread, kept from call to call.
class Arena {
  public:
    void reset(Index floats) {
        if (static_cast<Index>(held_.size()) < floats + 16) held_.resize(floats + 16);
        const auto address = reinterpret_cast<std::uintptr_t>(held_.data());
        start_ = held_.data() + (64 - address % 64) % 64 / sizeof(float);
        used_ = 0;
    }
    float* take(Index floats) {
        float* part = start_ + used_;
        used_ += (floats + 15) / 16 * 16;
        return part;
    }

    Index used() const { return used_; }
    void release(Index mark) { used_ = mark; }  // everything taken since

  private:
    std::vector<float> held_;
    float* start_ = nullptr;
    Index used_ = 0;
};

inline Arena& arena() {
    static thread_local Arena own;
    return own;
}

}  // namespace atlas
