// Causal attention inside a window, with a prefix that every query sees: the same function as `banded_attention` in
// atlas/ops/banded_attention. Forward, and backward from the log-sum-exp of the scores.
//
// A row is a sequence's head. Its queries go in blocks, which are the vectorised dimension ("lanes"); a block meets the
// prefix and the keys that any of its queries may see, all of them in one product.

#include "matrix.h"

using namespace atlas;

namespace {
constexpr Index BLOCK = 32;  // queries
}

extern "C" {

struct AttentionSizes {
    Index threads, batch, heads, tokens, width, window, prefix;  // B, H, T, d, w, P
};

struct AttentionInputs {
    Tensor query, keys, values;         // [B, H, tokens, d]
    Tensor valid;                       // [B, w - 1 + T] bytes
    Tensor prefix_keys, prefix_values;  // [H, P, d]
    const std::uint8_t* seen(Index b, Index t) const {
        return reinterpret_cast<const std::uint8_t*>(valid.data) + b * valid.first + t;
    }
};

}  // extern "C"

namespace {

struct Block {
    Index b, h, first, count, lanes;  // its queries
    Index seen, pairs;                // keys inside the window of any of them; with the prefix, a multiple of 8
    Block(const AttentionSizes& s, Index row, Index from) : b(row / s.heads), h(row % s.heads), first(from) {
        count = std::min(BLOCK, s.tokens - first);
        lanes = padded(count);
        seen = count + s.window - 1;
        pairs = (s.prefix + seen + 7) / 8 * 8;
    }
};

Index most_pairs(const AttentionSizes& s) { return (s.prefix + BLOCK + s.window + 6) / 8 * 8; }

// The block's keys or values: prefix, window, zeros.
void gather(const AttentionSizes& s, const Block& k, const float* prefix, const Tensor& tokens, float* rows) {
    const Index d = s.width;
    std::copy_n(prefix + k.h * s.prefix * d, s.prefix * d, rows);
    for (Index j = 0; j < k.seen; ++j) std::copy_n(tokens.at(k.b, k.h, k.first + j), d, rows + (s.prefix + j) * d);
    std::fill(rows + (s.prefix + k.seen) * d, rows + k.pairs * d, 0.0f);
}

// Scores [pairs, lanes] of the block; those that no query may see are the lowest number.
void scores(const AttentionSizes& s, const AttentionInputs& in, const Block& k, const float* keys, const float* query, float* to) {
    const Index L = k.lanes;
    product<false, Into::set>(k.pairs, L, s.width, keys, s.width, query, L, to, L);
    const std::uint8_t* valid = in.seen(k.b, k.first);
    for (Index j = 0; j < k.pairs - s.prefix; ++j) {
        float* row = to + (s.prefix + j) * L;
        const bool may = j < k.seen && valid[j];
        const Index from = may ? std::max<Index>(0, j - s.window + 1) : L, to_lane = std::min(L, j + 1);
        std::fill(row, row + std::min(from, L), -INFINITY);
        if (may && to_lane < L) std::fill(row + to_lane, row + L, -INFINITY);
    }
}

void take_scaled(const AttentionSizes& s, const Tensor& query, const Block& k, float* rows, float* lanes) {
    const float scale = 1.0f / std::sqrt(static_cast<float>(s.width));
    for (Index t = 0; t < k.count; ++t) {
        const float* from = query.at(k.b, k.h, k.first + t);
        for (Index i = 0; i < s.width; ++i) rows[t * s.width + i] = from[i] * scale;
    }
    std::fill(rows + k.count * s.width, rows + k.lanes * s.width, 0.0f);
    transpose(k.lanes, s.width, rows, s.width, lanes, k.lanes);
}

void put_back(const Index width, const float* lanes, const Block& k, float factor, const Tensor& to, float* rows) {
    transpose(width, k.lanes, lanes, k.lanes, rows, width);
    for (Index t = 0; t < k.count; ++t) {
        float* own = to.at(k.b, k.h, k.first + t);
        for (Index i = 0; i < width; ++i) own[i] = rows[t * width + i] * factor;
    }
}

void forward_block(const AttentionSizes& s, const AttentionInputs& in, const Block& k, const Tensor& out, float* sums) {
    const Index d = s.width, L = k.lanes;
    float *pairs = arena().take(k.pairs * d), *rows = arena().take(L * d), *query = arena().take(d * L);
    float *weights = arena().take(k.pairs * L), *result = arena().take(d * L);
    take_scaled(s, in.query, k, rows, query);
    gather(s, k, in.prefix_keys.data, in.keys, pairs);
    scores(s, in, k, pairs, query, weights);
    for (Index t = 0; t < L; t += 8) {
        Eight highest = Eight{} - 3.0e38f, sum = {};
        for (Index j = 0; j < k.pairs; ++j) {
            const Eight score = load<Eight>(weights + j * L + t);
            highest = score > highest ? score : highest;
        }
        for (Index j = 0; j < k.pairs; ++j) {
            const Eight score = load<Eight>(weights + j * L + t);
            const Eight weight = score == -INFINITY ? Eight{} : exponential(score - highest);
            store(weights + j * L + t, weight);
            sum += weight;
        }
        sum = sum == 0.0f ? Eight{} + 1.0f : sum;  // a query that sees nothing reads zeros
        for (Index j = 0; j < k.pairs; ++j) store(weights + j * L + t, load<Eight>(weights + j * L + t) / sum);
        for (Index lane = 0; lane < 8 && t + lane < k.count; ++lane) sums[t + lane] = highest[lane] + std::log(sum[lane]);
    }
    gather(s, k, in.prefix_values.data, in.values, pairs);
    product<true, Into::set>(d, L, k.pairs, pairs, d, weights, L, result, L);
    put_back(d, result, k, 1.0f, out, rows);
}

// The gradients of the block's keys or values join those of the row, [P + w - 1 + T, d].
void add_rows(const AttentionSizes& s, const Block& k, const float* rows, float* prefix, float* window) {
    for (Index i = 0; i < s.prefix * s.width; ++i) prefix[i] += rows[i];
    rows += s.prefix * s.width;
    window += k.first * s.width;
    for (Index i = 0; i < k.seen * s.width; ++i) window[i] += rows[i];
}

struct AttentionGradients {
    Tensor query;
    float *keys, *values, *prefix_keys, *prefix_values;  // [B, H, w - 1 + T, d], [B, H, P, d]
};

void backward_block(
    const AttentionSizes& s, const AttentionInputs& in, const Block& k, const Tensor& out, const float* sums, const Tensor& d_out,
    const AttentionGradients& to
) {
    const Index d = s.width, L = k.lanes, row = k.b * s.heads + k.h, all = s.window - 1 + s.tokens;
    float *keys = arena().take(k.pairs * d), *values = arena().take(k.pairs * d), *d_pairs = arena().take(k.pairs * d);
    float *query_rows = arena().take(L * d), *query = arena().take(d * L), *rows = arena().take(L * d);
    float *d_result = arena().take(d * L), *d_query = arena().take(d * L), *along = arena().take(L), *own = arena().take(L);
    float *weights = arena().take(k.pairs * L), *d_weights = arena().take(k.pairs * L);
    take_scaled(s, in.query, k, query_rows, query);
    gather(s, k, in.prefix_keys.data, in.keys, keys);
    gather(s, k, in.prefix_values.data, in.values, values);
    std::fill_n(along, L, 0.0f);
    std::fill_n(own, L, 0.0f);
    std::fill_n(rows, L * d, 0.0f);
    for (Index t = 0; t < k.count; ++t) {
        const float *result = out.at(k.b, k.h, k.first + t), *gradient = d_out.at(k.b, k.h, k.first + t);
        std::copy_n(gradient, d, rows + t * d);
        for (Index i = 0; i < d; ++i) along[t] += result[i] * gradient[i];
        own[t] = sums[t];
    }
    transpose(L, d, rows, d, d_result, L);

    scores(s, in, k, keys, query, weights);
    product<false, Into::set>(k.pairs, L, d, values, d, d_result, L, d_weights, L);
    for (Index j = 0; j < k.pairs; ++j) {
        for (Index t = 0; t < L; t += 8) {
            const Eight score = load<Eight>(weights + j * L + t);
            const Eight weight = score == -INFINITY ? Eight{} : exponential(score - load<Eight>(own + t));
            store(weights + j * L + t, weight);
            store(d_weights + j * L + t, weight * (load<Eight>(d_weights + j * L + t) - load<Eight>(along + t)));
        }
    }
    product<true, Into::set>(d, L, k.pairs, keys, d, d_weights, L, d_query, L);
    product<false, Into::set>(k.pairs, d, k.count, weights, L, rows, d, d_pairs, d);
    add_rows(s, k, d_pairs, to.prefix_values + row * s.prefix * d, to.values + row * all * d);
    product<false, Into::set>(k.pairs, d, k.count, d_weights, L, query_rows, d, d_pairs, d);
    add_rows(s, k, d_pairs, to.prefix_keys + row * s.prefix * d, to.keys + row * all * d);
    put_back(d, d_query, k, 1.0f / std::sqrt(static_cast<float>(d)), to.query, rows);
}

Index working_floats(const AttentionSizes& s) {
    const Index pairs = most_pairs(s);
    return pairs * (3 * s.width + 2 * BLOCK) + 5 * BLOCK * s.width + 2 * BLOCK + 12 * 16;
}

}  // namespace

// to: out [B, T, H, d], log-sum-exp of every query's scores [B, H, T]
extern "C" int atlas_attention_forward(const AttentionSizes* sizes, const AttentionInputs* in, const Tensor* to) {
    const AttentionSizes s = *sizes;
    const Tensor out = to[0].swapped();
    return for_rows(s.batch * s.heads, s.threads, [&](Index row) {
        for (Index first = 0; first < s.tokens; first += BLOCK) {
            arena().reset(working_floats(s));
            forward_block(s, *in, Block(s, row, first), out, to[1].data + row * s.tokens + first);
        }
    });
}

struct BackwardInputs {
    AttentionInputs in;
    Tensor out, sums, d_out;  // d_out [B, H, T, d]
};

// to: d_query [B, T, H, d], d_keys and d_values [B, H, w - 1 + T, d], gradients of the prefix [2, B, H, P, d]
extern "C" int atlas_attention_backward(const AttentionSizes* sizes, const BackwardInputs* from, const Tensor* to) {
    const AttentionSizes s = *sizes;
    const Tensor out = from->out.swapped();
    float* d_prefix = to[3].data;
    const Index half = s.batch * s.heads * s.prefix * s.width;
    const AttentionGradients gradients{to[0].swapped(), to[1].data, to[2].data, d_prefix, d_prefix + half};
    const Index seen = (s.window - 1 + s.tokens) * s.width, before = s.prefix * s.width;
    return for_rows(s.batch * s.heads, s.threads, [&](Index row) {
        for (float* sum : {gradients.keys, gradients.values}) std::fill_n(sum + row * seen, seen, 0.0f);
        for (float* sum : {gradients.prefix_keys, gradients.prefix_values}) std::fill_n(sum + row * before, before, 0.0f);
        for (Index first = 0; first < s.tokens; first += BLOCK) {
            arena().reset(working_floats(s));
            const float* sums = from->sums.data + row * s.tokens + first;
            backward_block(s, from->in, Block(s, row, first), out, sums, from->d_out, gradients);
        }
    });
}
