"""The memory's chunk scan as two Triton kernels, one program for each row: the same as `FusedChunk`, the update of a
`ChunkEnd` and `bound_norm` for all chunks of a stretch. Imports triton: see `gpu.py` for where it can be had.

The weights W1, W2, W3 stay on the chip from the first chunk to the last. A chunk of C tokens is M = ceil(C / R) tiles
of R tokens: W are the weights at the chunk's start, R those minus the updates of the chunk's earlier tiles. What a
token reads of earlier tiles is in R, what it reads of its own tile comes by masked Gram products, so no product is
C x C. A tile that the chunk does not fill is filled up with tokens of rate 0. The symbols are those of
`ops/whole_chunks/torch.py`; both passes are derived in docs/gpu.md.

Legend: N rows, n chunks, C tokens of each, R tokens of a tile, M tiles of a chunk, d head width, p feature width,
h hidden width, STATE = d h + 2 h p numbers of W1 [d, h], W2 [h, p], W3 [h, p] one after the other.
"""

# Triton's language is not typed, and its names follow the equations.
# mypy: ignore-errors
# ruff: noqa: E741, N803, RET505, RUF059, SIM108

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _dot(a, b, PRODUCTS: tl.constexpr):
    """`emulated` rounds to bf16 and multiplies in float32: the interpreter multiplies bf16 as integers."""
    if PRODUCTS == "bf16":
        return tl.dot(a.to(tl.bfloat16), b.to(tl.bfloat16))
    elif PRODUCTS == "emulated":
        return tl.dot(a.to(tl.bfloat16).to(tl.float32), b.to(tl.bfloat16).to(tl.float32), input_precision="ieee")
    else:
        return tl.dot(a, b, input_precision="ieee")


@triton.jit
def _sigmoid(x):
    small = tl.exp(-tl.abs(x))  # never overflows
    return tl.where(x >= 0, 1.0, small) / (1 + small)


@triton.jit
def _tril(x, R: tl.constexpr):
    token = tl.arange(0, R)
    return tl.where(token[:, None] >= token[None, :], x, 0.0)


@triton.jit
def _tokens(base, first, stride, valid, R: tl.constexpr, WIDTH: tl.constexpr):
    """[R, WIDTH]; zeros where the tile is not filled."""
    place = (first + tl.arange(0, R)[:, None]) * stride + tl.arange(0, WIDTH)[None, :]
    return tl.load(base + place, mask=valid[:, None], other=0.0).to(tl.float32)


@triton.jit
def _put_tokens(base, first, value, valid, R: tl.constexpr, WIDTH: tl.constexpr):
    place = (first + tl.arange(0, R)[:, None]) * WIDTH + tl.arange(0, WIDTH)[None, :]
    tl.store(base + place, value, mask=valid[:, None])


@triton.jit
def _place(base, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    return base + tl.arange(0, ROWS)[:, None] * COLUMNS + tl.arange(0, COLUMNS)[None, :]


@triton.jit
def _down(at, D: tl.constexpr, H: tl.constexpr):
    return tl.load(_place(at, D, H)).to(tl.float32)


@triton.jit
def _gate(at, D: tl.constexpr, H: tl.constexpr, P: tl.constexpr):
    return tl.load(_place(at + D * H, H, P)).to(tl.float32)


@triton.jit
def _linear(at, D: tl.constexpr, H: tl.constexpr, P: tl.constexpr):
    return tl.load(_place(at + D * H + H * P, H, P)).to(tl.float32)


@triton.jit
def _put(at, M1, M2, M3, D: tl.constexpr, H: tl.constexpr, P: tl.constexpr):
    tl.store(_place(at, D, H), M1)
    tl.store(_place(at + D * H, H, P), M2)
    tl.store(_place(at + D * H + H * P, H, P), M3)


@triton.jit
def _writes(K, V, PK, rate, W1, W2, W3, PRODUCTS: tl.constexpr):
    """The gradients of a tile's tokens at the weights W, in factored form, and what their backward pass needs."""
    A2 = _dot(PK, W2.T, PRODUCTS)
    A3 = _dot(PK, W3.T, PRODUCTS)
    sigmoid = _sigmoid(A2)
    silu = A2 * sigmoid
    slope = sigmoid + silu * (1 - sigmoid)
    U = silu * A3
    F = K + _dot(U, W1.T, PRODUCTS) - V
    r = tl.rsqrt(1 + tl.sum(F * F, 1))
    E = F * (r * rate)[:, None]
    B = _dot(E, W1, PRODUCTS)
    return A3, sigmoid, silu, slope, U, F, r, E, B, B * A3 * slope, B * silu


@triton.jit
def _reads(PK, PQ, X2, X3, W2, W3, R: tl.constexpr, PREFIX: tl.constexpr, PRODUCTS: tl.constexpr):
    """The hidden layer that the queries of a tile meet, from the weights W before the tile."""
    P2 = _dot(PQ, W2.T, PRODUCTS)
    P3 = _dot(PQ, W3.T, PRODUCTS)
    G = tl.zeros((R, R), tl.float32)
    if PREFIX:
        G = _tril(_dot(PQ, PK.T, PRODUCTS), R)
        P2 -= _dot(G, X2, PRODUCTS)
        P3 -= _dot(G, X3, PRODUCTS)
    sigmoid = _sigmoid(P2)
    return G, P3, sigmoid, P2 * sigmoid


@triton.jit
def _bounded(square, bound):
    # Not bound * rsqrt(max(square, bound^2)): that rounds to just below 1 inside the bound, and 1 means untouched.
    beyond = square > bound * bound
    return tl.where(beyond, bound * tl.rsqrt(tl.where(beyond, square, 1.0)), 1.0)


@triton.jit
def scan_forward(
    q, k, v, pq, pk, rate, gates, start, out, states, momenta, scales, end, momentum,
    q_row, q_token, k_row, k_token, v_row, v_token, pq_row, pq_token, pk_row, pk_token, rate_row, rate_token,
    chunks, bound_down, bound_up,
    C: tl.constexpr, R: tl.constexpr, D: tl.constexpr, H: tl.constexpr, P: tl.constexpr,
    PREFIX: tl.constexpr, MOMENTUM: tl.constexpr, KEEP: tl.constexpr, PRODUCTS: tl.constexpr,
):  # fmt: skip
    """`end` [N, STATE] holds the weights at the chunk's start, and at last those after all chunks; `momentum`
    [N, STATE] the momentum, given and left. With KEEP the backward pass gets `states` [N, n, M, STATE], the weights
    before every tile (without PREFIX [N, n, STATE], those before every chunk), `momenta` [N, n, STATE], S before every
    chunk, and `scales` [N, n, 2] of every chunk's end."""
    n = tl.program_id(0).to(tl.int64)
    token = tl.arange(0, R)
    STATE: tl.constexpr = D * H + 2 * H * P
    M: tl.constexpr = (C + R - 1) // R
    here = end + n * STATE
    R1 = _down(start + n * STATE, D, H)
    R2 = _gate(start + n * STATE, D, H, P)
    R3 = _linear(start + n * STATE, D, H, P)
    for c in range(chunks):
        if M > 1 or MOMENTUM:
            tl.debug_barrier()
            _put(here, R1, R2, R3, D, H, P)
            tl.debug_barrier()
        for i in range(M):
            if KEEP:
                if PREFIX:
                    _put(states + ((n * chunks + c) * M + i) * STATE, R1, R2, R3, D, H, P)
                elif i == 0:
                    _put(states + (n * chunks + c) * STATE, R1, R2, R3, D, H, P)
            if M == 1:
                W1, W2, W3 = R1, R2, R3
            else:
                W1 = _down(here, D, H)
                W2 = _gate(here, D, H, P)
                W3 = _linear(here, D, H, P)
            valid = i * R + token < C
            first = c * C + i * R
            K = _tokens(k + n * k_row, first, k_token, valid, R, D)
            V = _tokens(v + n * v_row, first, v_token, valid, R, D)
            PK = _tokens(pk + n * pk_row, first, pk_token, valid, R, P)
            eta = tl.load(rate + n * rate_row + (first + token) * rate_token, mask=valid, other=0.0).to(tl.float32)
            A3, sigmoid, silu, slope, U, F, r, E, B, X2, X3 = _writes(K, V, PK, eta, W1, W2, W3, PRODUCTS)
            PQ = _tokens(pq + n * pq_row, first, pq_token, valid, R, P)
            O = _tokens(q + n * q_row, first, q_token, valid, R, D)
            if PREFIX:
                G, P3, read_sigmoid, read_silu = _reads(PK, PQ, X2, X3, R2, R3, R, PREFIX, PRODUCTS)
                Z = read_silu * P3
                O += _dot(Z, R1.T, PRODUCTS) - _dot(_tril(_dot(Z, U.T, PRODUCTS), R), E, PRODUCTS)
            else:
                G, P3, read_sigmoid, read_silu = _reads(PK, PQ, X2, X3, W2, W3, R, PREFIX, PRODUCTS)
                O += _dot(read_silu * P3, W1.T, PRODUCTS)
            _put_tokens(out + n * chunks * C * D, first, O, valid, R, D)
            R1 -= _dot(E.T, U, PRODUCTS)
            R2 -= _dot(X2.T, PK, PRODUCTS)
            R3 -= _dot(X3.T, PK, PRODUCTS)
        if MOMENTUM:
            theta = tl.load(gates + (n * chunks + c) * 2)
            alpha = 1 - tl.load(gates + (n * chunks + c) * 2 + 1)
            kept = momentum + n * STATE
            S1 = _down(kept, D, H)
            S2 = _gate(kept, D, H, P)
            S3 = _linear(kept, D, H, P)
            if KEEP:
                _put(momenta + (n * chunks + c) * STATE, S1, S2, S3, D, H, P)
            W1 = _down(here, D, H)
            S1 = theta * S1 + (W1 - R1)
            R1 = alpha * W1 - S1
            W2 = _gate(here, D, H, P)
            S2 = theta * S2 + (W2 - R2)
            R2 = alpha * W2 - S2
            W3 = _linear(here, D, H, P)
            S3 = theta * S3 + (W3 - R3)
            R3 = alpha * W3 - S3
            tl.debug_barrier()
            _put(kept, S1, S2, S3, D, H, P)
        s1 = _bounded(tl.sum(R1 * R1), bound_down)
        s23 = _bounded(tl.sum(R2 * R2) + tl.sum(R3 * R3), bound_up)
        R1 *= s1
        R2 *= s23
        R3 *= s23
        if KEEP:
            tl.store(scales + (n * chunks + c) * 2, s1)
            tl.store(scales + (n * chunks + c) * 2 + 1, s23)
    tl.debug_barrier()
    _put(here, R1, R2, R3, D, H, P)


@triton.jit
def scan_backward(
    k, v, pq, pk, rate, gates, states, momenta, scales, end, d_out, d_end,
    d_residual, d_pq, d_pk, d_rate, d_gates, d_start, d_momentum,
    k_row, k_token, v_row, v_token, pq_row, pq_token, pk_row, pk_token, rate_row, rate_token,
    chunks, bound_down, bound_up,
    C: tl.constexpr, R: tl.constexpr, D: tl.constexpr, H: tl.constexpr, P: tl.constexpr,
    PREFIX: tl.constexpr, MOMENTUM: tl.constexpr, PRODUCTS: tl.constexpr,
):  # fmt: skip
    """Chunks and tiles in reverse; a tile's values are computed again from `states`. D1, D2, D3 are the gradients of R
    at the tile's end. Y1, Y2, Y3 gather those of W where D cannot hold them. `d_momentum` [N, STATE] holds the gradient
    of S, given and left."""
    n = tl.program_id(0).to(tl.int64)
    token = tl.arange(0, R)
    STATE: tl.constexpr = D * H + 2 * H * P
    M: tl.constexpr = (C + R - 1) // R
    KEPT: tl.constexpr = M if PREFIX else 1
    D1 = _down(d_end + n * STATE, D, H)
    D2 = _gate(d_end + n * STATE, D, H, P)
    D3 = _linear(d_end + n * STATE, D, H, P)
    straight = d_start + n * STATE  # working memory until the end: what goes past the tiles to the chunk's start
    for back in range(chunks):
        c = chunks - 1 - back
        origin = states + (n * chunks + c) * KEPT * STATE
        s1 = tl.load(scales + (n * chunks + c) * 2)
        s23 = tl.load(scales + (n * chunks + c) * 2 + 1)
        # W_next = s W' where W' is beyond its bound: dW' = s (dW - W_next <W_next, dW> / bound^2)
        if s1 < 1:
            if c == chunks - 1:
                N1 = _down(end + n * STATE, D, H)
            else:
                N1 = _down(origin + KEPT * STATE, D, H)
            D1 = s1 * (D1 - N1 * (tl.sum(N1 * D1) / (bound_down * bound_down)))
        if s23 < 1:
            if c == chunks - 1:
                N2 = _gate(end + n * STATE, D, H, P)
                N3 = _linear(end + n * STATE, D, H, P)
            else:
                N2 = _gate(origin + KEPT * STATE, D, H, P)
                N3 = _linear(origin + KEPT * STATE, D, H, P)
            along = (tl.sum(N2 * D2) + tl.sum(N3 * D3)) / (bound_up * bound_up)
            D2 = s23 * (D2 - N2 * along)
            D3 = s23 * (D3 - N3 * along)
        if MOMENTUM:
            # W' = alpha W - S, S = theta S_before + U, U the updates: T = dS = dS_later - dW', dW = alpha dW', dU = T,
            # and R = W - U: what T is to the tiles. It is not a part of dW.
            theta = tl.load(gates + (n * chunks + c) * 2)
            alpha = 1 - tl.load(gates + (n * chunks + c) * 2 + 1)
            before = momenta + (n * chunks + c) * STATE
            kept = d_momentum + n * STATE
            T1 = _down(kept, D, H) - D1
            T2 = _gate(kept, D, H, P) - D2
            T3 = _linear(kept, D, H, P) - D3
            d_theta = tl.sum(_down(before, D, H) * T1) + tl.sum(_gate(before, D, H, P) * T2)
            d_theta += tl.sum(_linear(before, D, H, P) * T3)
            d_alpha = tl.sum(_down(origin, D, H) * D1) + tl.sum(_gate(origin, D, H, P) * D2)
            d_alpha += tl.sum(_linear(origin, D, H, P) * D3)
            tl.store(d_gates + (n * chunks + c) * 2, d_theta)
            tl.store(d_gates + (n * chunks + c) * 2 + 1, -d_alpha)
            tl.debug_barrier()
            _put(kept, theta * T1, theta * T2, theta * T3, D, H, P)
            _put(straight, alpha * D1, alpha * D2, alpha * D3, D, H, P)
            tl.debug_barrier()
            D1, D2, D3 = -T1, -T2, -T3
        if M > 1 or MOMENTUM:
            Y1 = tl.zeros((D, H), tl.float32)
            Y2 = tl.zeros((H, P), tl.float32)
            Y3 = tl.zeros((H, P), tl.float32)
        for i_back in range(M):
            i = M - 1 - i_back
            W1 = _down(origin, D, H)
            W2 = _gate(origin, D, H, P)
            W3 = _linear(origin, D, H, P)
            valid = i * R + token < C
            first = c * C + i * R
            K = _tokens(k + n * k_row, first, k_token, valid, R, D)
            V = _tokens(v + n * v_row, first, v_token, valid, R, D)
            PK = _tokens(pk + n * pk_row, first, pk_token, valid, R, P)
            eta = tl.load(rate + n * rate_row + (first + token) * rate_token, mask=valid, other=0.0).to(tl.float32)
            A3, sigmoid, silu, slope, U, F, r, E, B, X2, X3 = _writes(K, V, PK, eta, W1, W2, W3, PRODUCTS)
            PQ = _tokens(pq + n * pq_row, first, pq_token, valid, R, P)
            dO = _tokens(d_out + n * chunks * C * D, first, D, valid, R, D)
            if M == 1 or not PREFIX:
                R1, R2, R3 = W1, W2, W3
            else:
                R1 = _down(origin + i * STATE, D, H)
                R2 = _gate(origin + i * STATE, D, H, P)
                R3 = _linear(origin + i * STATE, D, H, P)
            G, P3, read_sigmoid, read_silu = _reads(PK, PQ, X2, X3, R2, R3, R, PREFIX, PRODUCTS)
            Z = read_silu * P3
            # Of the reads, and of the updates R_next = R - E^T U, - X^T phi(K)
            dZ = _dot(dO, R1, PRODUCTS)
            dE = -_dot(U, D1.T, PRODUCTS)
            dU = -_dot(E, D1, PRODUCTS)
            dX2 = -_dot(PK, D2.T, PRODUCTS)
            dX3 = -_dot(PK, D3.T, PRODUCTS)
            dPK = -_dot(X2, D2, PRODUCTS) - _dot(X3, D3, PRODUCTS)
            if PREFIX:
                S = _tril(_dot(Z, U.T, PRODUCTS), R)
                dS = _tril(_dot(dO, E.T, PRODUCTS), R)
                dZ -= _dot(dS, U, PRODUCTS)
                dE -= _dot(S.T, dO, PRODUCTS)
                dU -= _dot(dS.T, Z, PRODUCTS)
            dP2 = dZ * P3 * (read_sigmoid + read_silu * (1 - read_sigmoid))
            dP3 = dZ * read_silu
            dPQ = _dot(dP2, R2, PRODUCTS) + _dot(dP3, R3, PRODUCTS)
            if PREFIX:
                dG = _tril(_dot(dP2, X2.T, PRODUCTS) + _dot(dP3, X3.T, PRODUCTS), R)
                dPQ -= _dot(dG, PK, PRODUCTS)
                dX2 -= _dot(G.T, dP2, PRODUCTS)
                dX3 -= _dot(G.T, dP3, PRODUCTS)
                dPK -= _dot(dG.T, PQ, PRODUCTS)
            _put_tokens(d_pq + n * chunks * C * P, first, dPQ, valid, R, P)
            by_reads1 = _dot(dO.T, Z, PRODUCTS)
            by_reads2 = _dot(dP2.T, PQ, PRODUCTS)
            by_reads3 = _dot(dP3.T, PQ, PRODUCTS)
            if M == 1 or PREFIX:
                D1 += by_reads1
                D2 += by_reads2
                D3 += by_reads3
            if MOMENTUM or (M > 1 and not PREFIX):
                Y1 += by_reads1
                Y2 += by_reads2
                Y3 += by_reads3
            # Of the writes
            dB = dX2 * A3 * slope + dX3 * silu
            dE += _dot(dB, W1.T, PRODUCTS)
            along = tl.sum(F * dE, 1)
            scale = r * eta
            dF = dE * scale[:, None] - F * (scale * r * r * along)[:, None]
            _put_tokens(d_residual + n * chunks * C * D, first, dF, valid, R, D)
            tl.store(d_rate + n * chunks * C + first + token, r * along, mask=valid)
            dU += _dot(dF, W1, PRODUCTS)
            dA3 = dU * silu + dX2 * B * slope
            dA2 = (dU * A3 + dX3 * B) * slope + dX2 * B * A3 * (sigmoid + slope - 2 * sigmoid * slope)
            dPK += _dot(dA2, W2, PRODUCTS) + _dot(dA3, W3, PRODUCTS)
            _put_tokens(d_pk + n * chunks * C * P, first, dPK, valid, R, P)
            if M == 1 and not MOMENTUM:
                D1 += _dot(E.T, dB, PRODUCTS) + _dot(dF.T, U, PRODUCTS)
                D2 += _dot(dA2.T, PK, PRODUCTS)
                D3 += _dot(dA3.T, PK, PRODUCTS)
            else:
                Y1 += _dot(E.T, dB, PRODUCTS) + _dot(dF.T, U, PRODUCTS)
                Y2 += _dot(dA2.T, PK, PRODUCTS)
                Y3 += _dot(dA3.T, PK, PRODUCTS)
        if MOMENTUM:
            D1 = Y1 + _down(straight, D, H)
            D2 = Y2 + _gate(straight, D, H, P)
            D3 = Y3 + _linear(straight, D, H, P)
        elif M > 1:
            D1 += Y1
            D2 += Y2
            D3 += Y3
    tl.debug_barrier()
    _put(d_start + n * STATE, D1, D2, D3, D, H, P)
