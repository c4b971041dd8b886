"""The structures and functions of the compiled library, as ctypes wants them; each named as in its C++ source."""

from __future__ import annotations

import ctypes
from ctypes import POINTER, Structure, c_double, c_int64, c_void_p


class Rows(Structure):
    """matrix.h: address, and strides of rows and tokens in floats."""

    _fields_ = [("data", c_void_p), ("row", c_int64), ("token", c_int64)]


class ScanSizes(Structure):
    """chunk.h"""

    _fields_ = [
        *((name, c_int64) for name in ("rows", "chunks", "count", "width", "hidden", "features")),
        *((name, c_int64) for name in ("prefix", "end", "threads")),
        *((name, c_double) for name in ("down_limit", "up_limit")),
    ]


class ScanMemory(Structure):
    """chunk.h"""

    _fields_ = [(name, c_void_p) for name in ("down", "up", "momentum_down", "momentum_up")]


class ScanInputs(Structure):
    """chunk.h"""

    _fields_ = [
        ("start", ScanMemory),
        ("gates", c_void_p),
        *((name, Rows) for name in ("query", "key", "value", "query_features", "key_features", "rate")),
    ]


class TokenGradients(Structure):
    """chunk_backward.h"""

    _fields_ = [(name, c_void_p) for name in ("residual", "query_features", "key_features", "rate")]


class AttentionSizes(Structure):
    """attention.cpp"""

    _fields_ = [(name, c_int64) for name in ("batch", "heads", "tokens", "width", "window", "prefix", "threads")]


class Heads(Structure):
    """attention.cpp: address, and strides of sequences, heads and tokens in floats."""

    _fields_ = [("data", c_void_p), ("batch", c_int64), ("head", c_int64), ("token", c_int64)]


class AttentionInputs(Structure):
    """attention.cpp"""

    _fields_ = [
        *((name, Heads) for name in ("query", "keys", "values")),
        *((name, c_void_p) for name in ("valid", "prefix_keys", "prefix_values")),
    ]


class AttentionGradients(Structure):
    """attention.cpp"""

    _fields_ = [
        ("query", Heads),
        *((name, c_void_p) for name in ("keys", "values", "prefix_keys", "prefix_values")),
    ]


class InputSizes(Structure):
    """inputs.cpp"""

    _fields_ = [(name, c_int64) for name in ("batch", "heads", "tokens", "width", "lags", "threads")]


class ProductSizes(Structure):
    """products.cpp"""

    _fields_ = [(name, c_int64) for name in ("rows", "tokens", "width", "threads")]


class NormSizes(Structure):
    """norm.cpp"""

    _fields_ = [*((name, c_int64) for name in ("rows", "width", "block", "threads")), ("epsilon", c_double)]


class SwigluSizes(Structure):
    """swiglu.cpp"""

    _fields_ = [(name, c_int64) for name in ("rows", "width", "threads")]


def declared(library: ctypes.CDLL) -> ctypes.CDLL:
    """The library, whose functions now refuse arguments of another type."""
    memory = POINTER(ScanMemory)
    scan = POINTER(ScanSizes), POINTER(ScanInputs), POINTER(c_void_p), memory, c_void_p
    attention = POINTER(AttentionSizes), POINTER(AttentionInputs), POINTER(Heads), c_void_p
    rows = POINTER(Rows)
    products = POINTER(ProductSizes), rows, rows
    inputs = POINTER(InputSizes), *[c_void_p] * 4
    functions = {
        "atlas_scan_forward": scan,
        "atlas_scan_backward": (*scan, memory, memory, c_void_p, POINTER(TokenGradients)),
        "atlas_attention_forward": attention,
        "atlas_attention_backward": (*attention, POINTER(Heads), POINTER(AttentionGradients)),
        "atlas_inputs_forward": inputs,
        "atlas_inputs_backward": (*inputs, rows, rows, rows, c_void_p, c_void_p),
        "atlas_norm_forward": (POINTER(NormSizes), *[c_void_p] * 4),
        "atlas_norm_backward": (POINTER(NormSizes), *[c_void_p] * 6),
        "atlas_swiglu_forward": (POINTER(SwigluSizes), *[c_void_p] * 2),
        "atlas_swiglu_backward": (POINTER(SwigluSizes), *[c_void_p] * 3),
        "atlas_products_forward": (*products, c_void_p, rows, c_void_p),
        "atlas_products_backward": (*products, rows, c_void_p, c_void_p, rows, rows),
    }
    for name, arguments in functions.items():
        function = getattr(library, name)
        function.argtypes, function.restype = arguments, None
    for name, sizes in {"atlas_scan_floats": ScanSizes, "atlas_products_floats": ProductSizes}.items():
        function = getattr(library, name)
        function.argtypes, function.restype = (POINTER(sizes),), c_int64
    return library
