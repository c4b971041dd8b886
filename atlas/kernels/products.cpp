// Causal products of the Q-K projection, M_t q_t with M_t = start + sum_{i <= t} k_i k_i^T: the same function as
// `causal_products` in atlas/ops/qk_projection, whose legend and equations hold here.
//
// A row goes block by block; inside, a name stands for its transpose, [width, tokens], unless it ends in `_rows`.

#include "matrix.h"

using namespace atlas;

namespace {
constexpr Index BLOCK = 64;  // tokens
}

extern "C" {

struct ProductSizes {
    Index threads, rows, tokens, width;  // N, T, d
};

}  // extern "C"

namespace {

// Kept of a block for the backward pass: the matrix before it, and tril(Q K^T), here [key, query].
struct Kept {
    Index lanes, gram, total;
    explicit Kept(const ProductSizes& s) {
        lanes = padded(std::min(s.tokens, BLOCK));
        gram = s.width * s.width;
        total = gram + lanes * lanes;
    }
    static Index blocks(const ProductSizes& s) { return (s.tokens + BLOCK - 1) / BLOCK; }
};

void give(const float* from, Index lanes, Index n, Index first, Index count, Index width, const Tensor& to, float* rows) {
    transpose(width, lanes, from, lanes, rows, width);
    for (Index t = 0; t < count; ++t) std::copy_n(rows + t * width, width, to.at(n, first + t));
}

// `total`: the matrix before the first block, then after the last one.
void forward_row(const ProductSizes& s, const Tensor& query, const Tensor& key, Index n, float* kept, const Tensor& out, float* total) {
    const Index d = s.width;
    const Kept parts(s);
    const Index L = parts.lanes;
    arena().reset(4 * d * L);
    float *queries = arena().take(d * L), *keys = arena().take(d * L), *result = arena().take(d * L);
    float* rows = arena().take(d * L);
    for (Index b = 0; b < Kept::blocks(s); ++b, kept += parts.total) {
        const Index first = b * BLOCK, count = std::min(BLOCK, s.tokens - first);
        float *before = kept, *gram = kept + parts.gram;
        std::copy_n(total, d * d, before);
        take(query, n, first, count, d, L, queries, L);
        take(key, n, first, count, d, L, keys, L);
        product<true, Into::set>(L, L, d, keys, L, queries, L, gram, L);
        keep_upper(gram, L);
        product<true, Into::set>(d, L, d, before, d, queries, L, result, L);
        product<false, Into::add>(d, L, L, keys, L, gram, L, result, L);
        give(result, L, n, first, count, d, out, rows);
        product<false, Into::add>(d, d, count, keys, L, key.at(n, first), key.second, total, d);
    }
}

// `later`: the gradient of the matrix after the last block, then of the one before the first.
void backward_row(
    const ProductSizes& s, const Tensor& query, const Tensor& key, const Tensor& d_out, Index n, const float* kept, float* later,
    const Tensor& d_query, const Tensor& d_key
) {
    const Index d = s.width;
    const Kept parts(s);
    const Index L = parts.lanes;
    arena().reset(6 * d * L + d * d + 3 * L * L);
    float *queries = arena().take(d * L), *keys = arena().take(d * L), *given = arena().take(d * L);
    float *d_queries = arena().take(d * L), *d_keys = arena().take(d * L), *rows = arena().take(d * L);
    float *both = arena().take(d * d), *d_gram = arena().take(L * L), *lower = arena().take(L * L);
    float* d_lower = arena().take(L * L);
    for (Index b = Kept::blocks(s) - 1; b >= 0; --b) {
        const Index first = b * BLOCK, count = std::min(BLOCK, s.tokens - first);
        const float *before = kept + b * parts.total, *gram = before + parts.gram;
        take(query, n, first, count, d, L, queries, L);
        take(key, n, first, count, d, L, keys, L);
        take(d_out, n, first, count, d, L, given, L);
        product<true, Into::set>(L, L, d, keys, L, given, L, d_gram, L);
        keep_upper(d_gram, L);
        transpose(L, L, gram, L, lower, L);
        transpose(L, L, d_gram, L, d_lower, L);
        product<false, Into::set>(d, L, d, before, d, given, L, d_queries, L);
        product<false, Into::add>(d, L, L, keys, L, d_gram, L, d_queries, L);
        transpose(d, d, later, d, both, d);
        for (Index i = 0; i < d * d; ++i) both[i] += later[i];
        product<false, Into::set>(d, L, d, both, d, keys, L, d_keys, L);
        product<false, Into::add>(d, L, L, given, L, lower, L, d_keys, L);
        product<false, Into::add>(d, L, L, queries, L, d_lower, L, d_keys, L);
        product<false, Into::add>(d, d, count, queries, L, d_out.at(n, first), d_out.second, later, d);
        give(d_queries, L, n, first, count, d, d_query, rows);
        give(d_keys, L, n, first, count, d, d_key, rows);
    }
}

}  // namespace

// Floats to keep per row.
extern "C" Index atlas_products_floats(const ProductSizes* s) { return Kept(*s).total * Kept::blocks(*s); }

// in: start [N, d, d], query and key [N, T, d]; to: out [N, T, d], the matrix after the last token, kept [N, floats]
extern "C" int atlas_products_forward(const ProductSizes* sizes, const Tensor* in, const Tensor* to) {
    const ProductSizes s = *sizes;
    const Index floats = atlas_products_floats(sizes), size = s.width * s.width;
    return for_rows(s.rows, s.threads, [=](Index n) {
        float* total = to[1].data + n * size;
        std::copy_n(in[0].data + n * size, size, total);
        forward_row(s, in[1], in[2], n, to[2].data + n * floats, to[0], total);
    });
}

// in: query, key, d_out, kept, and the gradient of the matrix after the last token; to: d_start, d_query, d_key
extern "C" int atlas_products_backward(const ProductSizes* sizes, const Tensor* in, const Tensor* to) {
    const ProductSizes s = *sizes;
    const Index floats = atlas_products_floats(sizes), size = s.width * s.width;
    return for_rows(s.rows, s.threads, [=](Index n) {
        float* later = to[0].data + n * size;
        std::copy_n(in[4].data + n * size, size, later);
        backward_row(s, in[0], in[1], in[2], n, in[3].data + n * floats, later, to[1], to[2]);
    });
}
