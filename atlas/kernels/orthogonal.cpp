// Newton-Schulz iteration and its gradient: the same function as `newton_schulz` in atlas/ops/newton_schulz, whose legend
// and equations hold here. All iterations of a matrix are made while it is in the cache.

#include "matrix.h"

using namespace atlas;

extern "C" {

struct OrthogonalSizes {
    Index threads, rows, tall, width, iterations;  // N, m, n, K
    double floor;
};

}  // extern "C"

namespace {

constexpr float a = 3.4445f, b = -4.7750f, c = 2.0315f;
constexpr Index LANES = 32;  // columns that a product makes at once

void mirror_upper(float* square, Index n) {
    for (Index i = 0; i < n; i += 8)
        for (Index j = i; j < n; j += 8) transpose8(square + i * n + j, n, square + j * n + i, n);
}

// out = left right, of which it is known that it is symmetric: the columns of a block, down to the diagonal.
template <bool TRANSPOSED>
void symmetric_product(Index n, Index depth, const float* left, const float* right, float* out) {
    for (Index first = 0; first < n; first += LANES) {
        const Index lanes = std::min(LANES, n - first);
        product<TRANSPOSED, Into::set>(first + lanes, lanes, depth, left, n, right + first, n, out + first, n);
    }
    mirror_upper(out, n);
}

// Rows of zeros stay zeros: they fill up the tiles of a product.
Index filled(const OrthogonalSizes& s) { return (s.tall + TILE - 1) / TILE * TILE; }

// gram = Y^T Y and poly = a + b gram + c gram^2
void polynomial(const OrthogonalSizes& s, const float* Y, float* gram, float* poly) {
    const Index n = s.width;
    symmetric_product<true>(n, s.tall, Y, Y, gram);
    symmetric_product<false>(n, n, gram, gram, poly);
    for (Index i = 0; i < n * n; ++i) poly[i] = b * gram[i] + c * poly[i];
    for (Index i = 0; i < n; ++i) poly[i * n + i] += a;
}

double inner(const float* left, const float* right, Index rows, Index width) {
    double sum = 0;
    for (Index i = 0; i < rows; ++i) sum += dot(left + i * width, right + i * width, width);
    return sum;
}

// Floats kept of a matrix: Y before every iteration, and the factor of its norm.
Index kept_floats(const OrthogonalSizes& s) { return s.iterations * filled(s) * s.width + 1; }

void forward_row(const OrthogonalSizes& s, const float* matrix, float* kept, float* out) {
    const Index m = filled(s), n = s.width, size = m * n, given = s.tall * n;
    arena().reset(2 * n * n + size);
    float *gram = arena().take(n * n), *poly = arena().take(n * n), *last = arena().take(size);
    const float factor = static_cast<float>(1 / std::sqrt(inner(matrix, matrix, s.tall, n) + s.floor * s.floor));
    kept[s.iterations * size] = factor;
    for (Index i = 0; i < given; ++i) kept[i] = factor * matrix[i];
    std::fill(kept + given, kept + size, 0.0f);
    for (Index k = 0; k < s.iterations; ++k, kept += size) {
        polynomial(s, kept, gram, poly);
        product<false, Into::set>(m, n, n, kept, n, poly, n, k + 1 < s.iterations ? kept + size : last, n);
    }
    std::copy_n(last, given, out);
}

// With S the symmetric part of Y^T dY_next, the gradient of poly:  d_gram = b S + c (S gram + gram S),
// dY = dY_next poly + 2 Y d_gram.
void backward_row(const OrthogonalSizes& s, const float* kept, const float* d_out, float* d_matrix) {
    const Index m = filled(s), n = s.width, size = m * n;
    arena().reset(4 * n * n + 2 * size);
    float *gram = arena().take(n * n), *poly = arena().take(n * n), *d_poly = arena().take(n * n);
    float *d_gram = arena().take(n * n), *given = arena().take(size), *d_Y = arena().take(size);
    std::fill(std::copy_n(d_out, s.tall * n, given), given + size, 0.0f);
    for (Index k = s.iterations - 1; k >= 0; --k) {
        const float* Y = kept + k * size;
        polynomial(s, Y, gram, poly);
        product<true, Into::set>(n, n, m, Y, n, given, n, d_gram, n);
        transpose(n, n, d_gram, n, d_poly, n);
        for (Index i = 0; i < n * n; ++i) d_poly[i] = 0.5f * (d_poly[i] + d_gram[i]);
        product<false, Into::set>(m, n, n, given, n, poly, n, d_Y, n);
        product<false, Into::set>(n, n, n, d_poly, n, gram, n, d_gram, n);
        transpose(n, n, d_gram, n, poly, n);
        for (Index i = 0; i < n * n; ++i) d_gram[i] = 2 * (b * d_poly[i] + c * (d_gram[i] + poly[i]));
        product<false, Into::add>(m, n, n, Y, n, d_gram, n, d_Y, n);
        std::swap(given, d_Y);
    }
    const float factor = kept[s.iterations * size], along = static_cast<float>(inner(kept, given, m, n));
    for (Index i = 0; i < s.tall * n; ++i) d_matrix[i] = factor * (given[i] - kept[i] * along);
}

}  // namespace

// Floats to keep per matrix.
extern "C" Index atlas_orthogonal_floats(const OrthogonalSizes* s) { return kept_floats(*s); }

// in: matrix [N, m, n]; to: out [N, m, n], kept [N, floats]
extern "C" int atlas_orthogonal_forward(const OrthogonalSizes* sizes, const Tensor* in, const Tensor* to) {
    const OrthogonalSizes s = *sizes;
    const Index size = s.tall * s.width, floats = kept_floats(s);
    return for_rows(s.rows, s.threads, [=](Index i) {
        forward_row(s, in[0].data + i * size, to[1].data + i * floats, to[0].data + i * size);
    });
}

// in: kept, d_out; to: d_matrix [N, m, n]
extern "C" int atlas_orthogonal_backward(const OrthogonalSizes* sizes, const Tensor* in, const Tensor* to) {
    const OrthogonalSizes s = *sizes;
    const Index size = s.tall * s.width, floats = kept_floats(s);
    return for_rows(s.rows, s.threads, [=](Index i) {
        backward_row(s, in[0].data + i * floats, in[1].data + i * size, to[0].data + i * size);
    });
}
