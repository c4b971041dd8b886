"""The backward pass of the memory's chunk scan (`triton_scan.py`) as one Triton kernel, a program for each row.

Legend: `triton_scan.py`. A name with `d` is the gradient of that name.
"""

# Triton's language is not typed, and its names follow the equations.
# mypy: ignore-errors
# ruff: noqa: N803

from __future__ import annotations

import triton
import triton.language as tl

from atlas.kernels.triton_tiles import (
    ANY,
    dot,
    down,
    gate,
    linear,
    put,
    put_tokens,
    reads,
    tokens,
    tril,
    weights,
    writes,
    written,
)


@triton.jit(do_not_specialize=ANY, do_not_specialize_on_alignment=["rate"])
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
    k, v, pk, rate = k + n * k_row, v + n * v_row, pk + n * pk_row, rate + n * rate_row
    token = tl.arange(0, R)
    STATE: tl.constexpr = D * H + 2 * H * P
    M: tl.constexpr = (C + R - 1) // R
    KEPT: tl.constexpr = M if PREFIX else 1
    D1, D2, D3 = weights(d_end + n * STATE, D, H, P)
    straight = d_start + n * STATE  # working memory until the end: what goes past the tiles to the chunk's start
    for back in range(chunks):
        c = chunks - 1 - back
        origin = states + (n * chunks + c) * KEPT * STATE
        s1 = tl.load(scales + (n * chunks + c) * 2)
        s23 = tl.load(scales + (n * chunks + c) * 2 + 1)
        # W_next = s W' where W' is beyond its bound: dW' = s (dW - W_next <W_next, dW> / bound^2)
        if s1 < 1:
            if c == chunks - 1:
                N1 = down(end + n * STATE, D, H).to(tl.float32)
            else:
                N1 = down(origin + KEPT * STATE, D, H).to(tl.float32)
            D1 = s1 * (D1 - N1 * (tl.sum(N1 * D1) / (bound_down * bound_down)))
        if s23 < 1:
            if c == chunks - 1:
                N2 = gate(end + n * STATE, D, H, P).to(tl.float32)
                N3 = linear(end + n * STATE, D, H, P).to(tl.float32)
            else:
                N2 = gate(origin + KEPT * STATE, D, H, P).to(tl.float32)
                N3 = linear(origin + KEPT * STATE, D, H, P).to(tl.float32)
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
            T1 = down(kept, D, H) - D1
            T2 = gate(kept, D, H, P) - D2
            T3 = linear(kept, D, H, P) - D3
            d_theta = tl.sum(down(before, D, H) * T1) + tl.sum(gate(before, D, H, P) * T2)
            d_theta += tl.sum(linear(before, D, H, P) * T3)
            d_alpha = tl.sum(down(origin, D, H) * D1) + tl.sum(gate(origin, D, H, P) * D2)
            d_alpha += tl.sum(linear(origin, D, H, P) * D3)
            tl.store(d_gates + (n * chunks + c) * 2, d_theta)
            tl.store(d_gates + (n * chunks + c) * 2 + 1, -d_alpha)
            tl.debug_barrier()
            put(kept, theta * T1, theta * T2, theta * T3, D, H, P)
            put(straight, alpha * D1, alpha * D2, alpha * D3, D, H, P)
            tl.debug_barrier()
            D1, D2, D3 = -T1, -T2, -T3
        if M > 1 or MOMENTUM:
            Y1 = tl.zeros((D, H), tl.float32)
            Y2 = tl.zeros((H, P), tl.float32)
            Y3 = tl.zeros((H, P), tl.float32)
        for i_back in range(M):
            i = M - 1 - i_back
            W1, W2, W3 = weights(origin, D, H, P)
            valid = i * R + token < C
            first = c * C + i * R
            K, V, PK, eta = written(k, v, pk, rate, first, k_token, v_token, pk_token, rate_token, valid, R, D, P)
            A3, sigmoid, silu, slope, U, F, r, E, B, X2, X3 = writes(K, V, PK, eta, W1, W2, W3, PRODUCTS)
            PQ = tokens(pq + n * pq_row, first, pq_token, valid, R, P)
            dO = tokens(d_out + n * chunks * C * D, first, D, valid, R, D)
            if M == 1 or not PREFIX:
                R1, R2, R3 = W1, W2, W3
            else:
                R1, R2, R3 = weights(origin + i * STATE, D, H, P)
            G, P3, read_sigmoid, read_silu = reads(PK, PQ, X2, X3, R2, R3, R, PREFIX, PRODUCTS)
            Z = read_silu * P3
            # Of the reads, and of the updates R_next = R - E^T U, - X^T phi(K)
            dZ = dot(dO, R1, PRODUCTS)
            dE = -dot(U, D1.T, PRODUCTS)
            dU = -dot(E, D1, PRODUCTS)
            dX2 = -dot(PK, D2.T, PRODUCTS)
            dX3 = -dot(PK, D3.T, PRODUCTS)
            dPK = -dot(X2, D2, PRODUCTS) - dot(X3, D3, PRODUCTS)
            if PREFIX:
                S = tril(dot(Z, U.T, PRODUCTS), R)
                dS = tril(dot(dO, E.T, PRODUCTS), R)
                dZ -= dot(dS, U, PRODUCTS)
                dE -= dot(S.T, dO, PRODUCTS)
                dU -= dot(dS.T, Z, PRODUCTS)
            dP2 = dZ * P3 * (read_sigmoid + read_silu * (1 - read_sigmoid))
            dP3 = dZ * read_silu
            dPQ = dot(dP2, R2, PRODUCTS) + dot(dP3, R3, PRODUCTS)
            if PREFIX:
                dG = tril(dot(dP2, X2.T, PRODUCTS) + dot(dP3, X3.T, PRODUCTS), R)
                dPQ -= dot(dG, PK, PRODUCTS)
                dX2 -= dot(G.T, dP2, PRODUCTS)
                dX3 -= dot(G.T, dP3, PRODUCTS)
                dPK -= dot(dG.T, PQ, PRODUCTS)
            put_tokens(d_pq + n * chunks * C * P, first, dPQ, valid, R, P)
            by_reads1 = dot(dO.T, Z, PRODUCTS)
            by_reads2 = dot(dP2.T, PQ, PRODUCTS)
            by_reads3 = dot(dP3.T, PQ, PRODUCTS)
            if M == 1 or PREFIX:
                D1 += by_reads1
                D2 += by_reads2
                D3 += by_reads3
            if MOMENTUM or (M > 1 and not PREFIX):
                Y1 += by_reads1
                Y2 += by_reads2
                Y3 += by_reads3
            # Of the writes. Through the reads W does not fit into the registers: it is loaded again.
            W1, W2, W3 = weights(origin, D, H, P)
            if not MOMENTUM:  # nor do these
                K, V, PK, eta = written(k, v, pk, rate, first, k_token, v_token, pk_token, rate_token, valid, R, D, P)
                A3, sigmoid, silu, slope, U, F, r, E, B, X2, X3 = writes(K, V, PK, eta, W1, W2, W3, PRODUCTS)
            dB = dX2 * A3 * slope + dX3 * silu
            dE += dot(dB, W1.T, PRODUCTS)
            along = tl.sum(F * dE, 1)
            scale = r * eta
            dF = dE * scale[:, None] - F * (scale * r * r * along)[:, None]
            put_tokens(d_residual + n * chunks * C * D, first, dF, valid, R, D)
            tl.store(d_rate + n * chunks * C + first + token, r * along, mask=valid)
            dU += dot(dF, W1, PRODUCTS)
            dA3 = dU * silu + dX2 * B * slope
            dA2 = (dU * A3 + dX3 * B) * slope + dX2 * B * A3 * (sigmoid + slope - 2 * sigmoid * slope)
            dPK += dot(dA2, W2, PRODUCTS) + dot(dA3, W3, PRODUCTS)
            put_tokens(d_pk + n * chunks * C * P, first, dPK, valid, R, P)
            if M == 1 and not MOMENTUM:
                D1 += dot(E.T, dB, PRODUCTS) + dot(dF.T, U, PRODUCTS)
                D2 += dot(dA2.T, PK, PRODUCTS)
                D3 += dot(dA3.T, PK, PRODUCTS)
            else:
                Y1 += dot(E.T, dB, PRODUCTS) + dot(dF.T, U, PRODUCTS)
                Y2 += dot(dA2.T, PK, PRODUCTS)
                Y3 += dot(dA3.T, PK, PRODUCTS)
        if MOMENTUM:
            D1 = Y1 + down(straight, D, H)
            D2 = Y2 + gate(straight, D, H, P)
            D3 = Y3 + linear(straight, D, H, P)
        elif M > 1:
            D1 += Y1
            D2 += Y2
            D3 += Y3
    tl.debug_barrier()
    put(d_start + n * STATE, D1, D2, D3, D, H, P)
