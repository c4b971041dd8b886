// Chunks of the dual form one after the other, forward and backward (chunk.h), and `bound_norm` of
// atlas/ops/fast_weights.py after every chunk. A row is one memory; rows are shared out among threads.

#include "chunk_backward.h"
#include "chunk_forward.h"

using namespace atlas;

namespace {

double square_sum(const float* matrix, Index size) {
    double sum = 0;
    for (Index i = 0; i < size; i += 8) {
        Eight part = load<Eight>(matrix + i);
        part *= part;
        sum += ((part[0] + part[1]) + (part[2] + part[3])) + ((part[4] + part[5]) + (part[6] + part[7]));
    }
    return sum;
}

// Scales a matrix back to its largest norm; what it was before, or 0 if it was not beyond.
float bound(float* matrix, Index size, double limit) {
    const double norm = std::sqrt(square_sum(matrix, size));
    if (!(norm > limit)) return 0;
    const float factor = static_cast<float>(limit / norm);
    for (Index i = 0; i < size; ++i) matrix[i] *= factor;
    return static_cast<float>(norm);
}

// M' = M l / ||M||:  dM = l / ||M|| (dM' - M' <M', dM'> / l^2)
void unbound(float* gradient, const float* matrix, Index size, double limit, float norm) {
    if (norm == 0) return;
    double along = 0;
    for (Index i = 0; i < size; ++i) along += static_cast<double>(matrix[i]) * gradient[i];
    const float share = static_cast<float>(along / (limit * limit)), factor = static_cast<float>(limit / norm);
    for (Index i = 0; i < size; ++i) gradient[i] = factor * (gradient[i] - share * matrix[i]);
}

// What a row keeps of a chunk for the backward pass: its blocks, the norms before they were bounded, and the weights after
// it. A chunk's are a tensor of their own: small ones are had from memory that was used before.
struct Kept {
    Index norms, down, up, total;
    Kept(const ScanSizes& s, const Layout& layout) {
        norms = layout.total * layout.blocks(s);
        down = norms + 8;
        up = down + s.down();
        total = up + s.up();
    }
};

void forward_row(const ScanSizes& s, const ScanInputs& in, Index n, float* const* kept, float* out, Written after) {
    const Layout layout(s);
    const Kept parts(s, layout);
    const Index blocks = layout.blocks(s);
    Read start{in.down + n * s.down(), in.up + n * s.up()};
    for (Index c = 0; c < s.chunks; ++c) {
        float* own = kept[c] + n * parts.total;
        const Written end = c + 1 < s.chunks ? Written{own + parts.down, own + parts.up} : after;
        if (s.step) {
            std::copy_n(start.down, s.down(), end.down);
            std::copy_n(start.up, s.up(), end.up);
        } else {
            std::fill_n(end.down, s.down(), 0.0f);
            std::fill_n(end.up, s.up(), 0.0f);
        }
        for (Index b = 0; b < blocks; ++b) {
            arena().reset(Forward::floats(s));
            const Index first = b * layout.block, count = std::min(layout.block, s.count - first);
            const Block block(s, in, start, n, c * s.count + first, count);
            Forward(block, own + b * layout.total).run(out, end);
        }
        own[parts.norms] = s.step ? bound(end.down, s.down(), s.down_limit) : 0;
        own[parts.norms + 1] = s.step ? bound(end.up, s.up(), s.up_limit) : 0;
        start = {end.down, end.up};
    }
}

// A chunk's gradients, from `g` of the weights after it (null where nothing depends on them) to `to` of those before it.
void backward_chunk(
    const ScanSizes& s, const ScanInputs& in, Index n, Index chunk, const float* own, Read start, float* g_out, Written g,
    Written to, const TokenGradients& tokens
) {
    const Layout layout(s);
    const Index mark = arena().used();
    if (g.down && s.step) std::copy_n(g.down, s.down(), to.down);
    else std::fill_n(to.down, s.down(), 0.0f);
    if (g.up && s.step) std::copy_n(g.up, s.up(), to.up);
    else std::fill_n(to.up, s.up(), 0.0f);
    if (s.step) {  // the updates are subtracted
        for (Index i = 0; g.down && i < s.down(); ++i) g.down[i] = -g.down[i];
        for (Index i = 0; g.up && i < s.up(); ++i) g.up[i] = -g.up[i];
    }
    for (Index b = 0; b < layout.blocks(s); ++b) {
        arena().release(mark);
        const Index first = b * layout.block, count = std::min(layout.block, s.count - first);
        const Block block(s, in, start, n, chunk * s.count + first, count);
        Backward(block, own + b * layout.total, {g.down, g.up}).run(g_out, to, tokens);
    }
}

void backward_row(
    const ScanSizes& s, const ScanInputs& in, Index n, const float* const* kept, Read after, float* g_out, Read g_after,
    Written to, const TokenGradients& tokens
) {
    const Kept parts(s, Layout(s));
    for (Index c = s.chunks - 1; c >= 0; --c) {
        const bool last = c + 1 == s.chunks;
        const float *own = kept[c] + n * parts.total, *before = c ? kept[c - 1] + n * parts.total : nullptr;
        const Read first{in.down + n * s.down(), in.up + n * s.up()};
        const Read start = c ? Read{before + parts.down, before + parts.up} : first;
        const Read end = last ? after : Read{own + parts.down, own + parts.up};
        arena().reset(Backward::floats(s) + s.down() + s.up() + 32);
        // The gradient of the weights after the chunk: given, or what the chunk after this one has left in `to`.
        const Read given = last ? g_after : Read{to.down, to.up};
        const Written g{given.down ? arena().take(s.down()) : nullptr, given.up ? arena().take(s.up()) : nullptr};
        if (g.down) {
            std::copy_n(given.down, s.down(), g.down);
            unbound(g.down, end.down, s.down(), s.down_limit, own[parts.norms]);
        }
        if (g.up) {
            std::copy_n(given.up, s.up(), g.up);
            unbound(g.up, end.up, s.up(), s.up_limit, own[parts.norms + 1]);
        }
        backward_chunk(s, in, n, c, own, start, g_out, g, to, tokens);
    }
}

}  // namespace

// Floats to keep per row and chunk.
extern "C" Index atlas_scan_floats(const ScanSizes* s) { return Kept(*s, Layout(*s)).total; }

// out [N, T, d]; weights after the last chunk, or without `step` the chunk's updates.
extern "C" void atlas_scan_forward(
    const ScanSizes* sizes, const ScanInputs* inputs, float* const* kept, float* out, float* after_down, float* after_up
) {
    const ScanSizes s = *sizes;
#pragma omp parallel for num_threads(s.threads) schedule(static)
    for (Index n = 0; n < s.rows; ++n)
        forward_row(s, *inputs, n, kept, out, {after_down + n * s.down(), after_up + n * s.up()});
}

// `g_down`, `g_up` null: nothing depends on the weights after the last chunk.
extern "C" void atlas_scan_backward(
    const ScanSizes* sizes, const ScanInputs* inputs, const float* const* kept, const float* after_down, const float* after_up, float* g_out,
    const float* g_down, const float* g_up, float* d_down, float* d_up, float* d_residual, float* d_query_features,
    float* d_key_features, float* d_rate
) {
    const ScanSizes s = *sizes;
    const TokenGradients tokens{d_residual, d_query_features, d_key_features, d_rate};
#pragma omp parallel for num_threads(s.threads) schedule(static)
    for (Index n = 0; n < s.rows; ++n) {
        const Index down = n * s.down(), up = n * s.up();
        const Read after{after_down + down, after_up + up};
        const Read g{g_down ? g_down + down : nullptr, g_up ? g_up + up : nullptr};
        backward_row(s, *inputs, n, kept, after, g_out, g, {d_down + down, d_up + up}, tokens);
    }
}
