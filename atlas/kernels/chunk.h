// A block of tokens of one memory's chunk, forward and backward: the same function as atlas/ops/whole_chunks/torch.py, whose
// legend of names and equations holds here.
//
// Tokens are the vectorised dimension: a name stands for its transpose, [width, lanes], unless it ends in `_rows`. The
// weights are then read as they lie. Tokens are padded with zeros, which write nothing and read nothing.
#pragma once

#include "matrix.h"

extern "C" {

struct ScanSizes {
    atlas::Index threads, rows, chunks, count, width, hidden, features;  // N, n, C, d, h, p
    atlas::Index prefix, end;
    atlas::Index parts;           // of what is kept: chunk c uses part c % parts
    atlas::Index shared;          // 1: the features are the queries and keys themselves
    double down_limit, up_limit;  // largest norms after a chunk
    atlas::Index down() const { return width * hidden; }
    atlas::Index up() const { return 2 * hidden * features; }
    atlas::Index tokens() const { return chunks * count; }
};

// Weights [N, d, h] and [N, 2h, p], and the rule's momentum of the same shapes if it has one; or gradients of them.
struct ScanMemory {
    atlas::Tensor down, up, momentum_down, momentum_up;
};

struct ScanInputs {
    atlas::Tensor query, key, value, query_features, key_features, rate;
    atlas::Tensor gates;  // [N, n, 2]: theta and 1 - alpha of a chunk, if the rule has momentum
    ScanMemory start;
};

}  // extern "C"

namespace atlas {

// What a chunk returns: its updates, the weights less them, or those of the rule `momentum`.
enum End : Index { UPDATES, STEP, MOMENTUM };

constexpr Index BLOCK = 64;  // tokens at a time where every token reads the chunk's start

// Floats kept of a block for the backward pass. A and R lie side by side: [2h, 2 lanes].
struct Layout {
    Index block, lanes, pre, residual, back, gram, kernel, total;
    explicit Layout(const ScanSizes& s) {
        block = s.prefix ? s.count : std::min(s.count, BLOCK);
        lanes = padded(block);
        pre = 0;
        residual = pre + 4 * s.hidden * lanes;
        back = residual + s.width * lanes;
        gram = back + s.hidden * lanes;
        kernel = gram + (s.prefix ? lanes * lanes : 0);
        total = kernel + (s.prefix ? lanes * lanes : 0);
    }
    Index blocks(const ScanSizes& s) const { return (s.count + block - 1) / block; }
};

// The two matrices of one memory, or gradients of them; a gradient is null where nothing depends on the matrix.
struct Weights {
    float *down, *up;
};

// bound = (1 + ||e||^2)^-1/2 per token
inline void bounds(const float* residual, Index width, Index lanes, float* bound) {
    for (Index t = 0; t < lanes; t += 8) {
        Eight square = Eight{} + 1.0f;
        for (Index i = 0; i < width; ++i) {
            const Eight part = load<Eight>(residual + i * lanes + t);
            square += part * part;
        }
        for (int l = 0; l < 8; ++l) bound[t + l] = 1.0f / std::sqrt(square[l]);
    }
}

inline void scaled(const float* matrix, const float* factor, Index width, Index lanes, float* to) {
    for (Index i = 0; i < width; ++i) {
        for_vectors(lanes, [=](auto zero, Index t) {
            using Lanes = decltype(zero);
            store(to + i * lanes + t, load<Lanes>(matrix + i * lanes + t) * load<Lanes>(factor + t));
        });
    }
}

// Of [2h, .] pre-activations, gate over linear: silu(A2) A3, and if asked sigmoid, silu, silu'.
inline void gated(
    const float* pre, Index step, Index hidden, Index lanes, float* units, float* sigma, float* silu, float* slope
) {
    for (Index i = 0; i < hidden; ++i) {
        for_vectors(lanes, [=](auto zero, Index t) {
            using Lanes = decltype(zero);
            const Lanes gate = load<Lanes>(pre + i * step + t), linear = load<Lanes>(pre + (hidden + i) * step + t);
            const Lanes s = sigmoid(gate), a = gate * s;
            const Index at = i * lanes + t;
            store(units + at, a * linear);
            if (sigma) store(sigma + at, s);
            if (silu) store(silu + at, a);
            if (slope) store(slope + at, s + a * (1.0f - s));
        });
    }
}

// Shared by both passes of a block. Matrices of A and R, and of their gradients, have `wide` floats from line to line.
struct Block {
    const ScanSizes& s;
    const ScanInputs& in;
    const Weights start;          // the chunk's start weights
    const Index n, first, count;  // the memory; the block's first token, of the whole stretch, and its tokens
    const Index d, h, p, L, wide;
    const Layout layout;

    Block(const ScanSizes& s, const ScanInputs& in, Weights start, Index n, Index first, Index count)
        : s(s), in(in), start(start), n(n), first(first), count(count), d(s.width), h(s.hidden), p(s.features),
          L(Layout(s).lanes), wide(2 * L), layout(s) {}

    // X = [back A3 silu'(A2), back silu(A2)]
    void signals(const float* back, const float* linear, const float* slope, const float* silu, float* signal) const {
        for (Index i = 0; i < h; ++i) {
            for_vectors(L, [=](auto zero, Index t) {
                using Lanes = decltype(zero);
                const Index at = i * L + t;
                const Lanes b = load<Lanes>(back + at);
                store(signal + at, b * load<Lanes>(linear + i * wide + t) * load<Lanes>(slope + at));
                store(signal + h * L + at, b * load<Lanes>(silu + at));
            });
        }
    }
    // eta r
    void error_scale(const float* bound, float* scale) const {
        for (Index t = 0; t < L; ++t) scale[t] = bound[t] * (t < count ? *in.rate.at(n, first + t) : 0.0f);
    }
    // Keys' features beside queries' features: [p, wide]
    void take_features(float* features) const {
        take(in.key_features, n, first, count, p, L, features, wide);
        take(in.query_features, n, first, count, p, L, features + L, wide);
    }
    Index token() const { return n * s.tokens() + first; }
    // [width, L] of the block's tokens -> [count, width]; `rows` holds the padded ones.
    void give(const float* from, Index step, Index width, float* rows, float* to) const {
        transpose(width, L, from, step, count == L ? to : rows, width);
        if (count != L) std::copy_n(rows, count * width, to);
    }
};

}  // namespace atlas
