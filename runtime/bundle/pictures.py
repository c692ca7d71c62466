"""Small pictures of vectors for the page: a line's envelope as SVG, a matrix as PNG, both inside the HTML."""

from __future__ import annotations

import base64
import struct
import zlib

import numpy as np
from numpy.typing import NDArray

WIDTH, HEIGHT = 240, 40
LEAST = 24  # values; fewer are no picture
PALETTE = np.array([[28, 22, 61], [72, 36, 117], [33, 113, 142], [53, 183, 121], [253, 231, 37]], np.float64)  # dark to light


def picture(values: NDArray[np.float32], time_last: bool) -> str:
    """HTML of a vector (n,) or a matrix whose time runs along its last or its first axis; empty where there is too little to see."""
    if values.ndim == 1:
        return _line(values) if len(values) >= LEAST else ""
    matrix = values.reshape(-1, values.shape[-1]) if time_last else values.reshape(values.shape[0], -1).T
    return _image(matrix) if min(matrix.shape) > 1 and matrix.size >= LEAST else ""


def _line(values: NDArray[np.float32]) -> str:
    columns = np.array_split(values.astype(np.float64), min(WIDTH, len(values)))
    low, high = np.array([column.min() for column in columns]), np.array([column.max() for column in columns])
    least, span = low.min(), max(float(high.max() - low.min()), 1e-12)
    step = WIDTH / len(columns)

    def place(value: float) -> str:
        return f"{HEIGHT - 1 - (value - least) / span * (HEIGHT - 2):.1f}"

    points = [f"{index * step:.1f} {place(value)}" for index, pair in enumerate(zip(high, low, strict=True)) for value in pair]
    course = f'<path d="M{" L".join(points)}"/>'
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" preserveAspectRatio="none" role="img" aria-label="its course">{course}</svg>'


def _image(matrix: NDArray[np.float32]) -> str:
    """Rows from the bottom up, shrunk by means, dark to light between the 2nd and the 98th percentile."""
    small = _shrunk(_shrunk(matrix.astype(np.float64), HEIGHT).T, WIDTH).T[::-1]
    low, high = np.percentile(small, [2, 98])
    share = np.clip((small - low) / max(high - low, 1e-12), 0, 1) * (len(PALETTE) - 1)
    index = np.minimum(share.astype(int), len(PALETTE) - 2)
    part = (share - index)[..., None]
    pixels = np.rint(PALETTE[index] * (1 - part) + PALETTE[index + 1] * part).astype(np.uint8)
    data = base64.b64encode(_png(pixels)).decode()
    return f'<img alt="its values, time to the right" src="data:image/png;base64,{data}">'


def _shrunk(matrix: NDArray[np.float64], most: int) -> NDArray[np.float64]:
    """At most so many rows."""
    if len(matrix) <= most:
        return matrix
    return np.array([part.mean(axis=0) for part in np.array_split(matrix, most)])


def _png(pixels: NDArray[np.uint8]) -> bytes:
    height, width = pixels.shape[:2]
    rows = b"".join(b"\0" + row.tobytes() for row in pixels)

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows, 9)) + chunk(b"IEND", b"")
