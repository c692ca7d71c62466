"""Images sampled at computed places: affine transforms, grids of coordinates, and boxes."""

from __future__ import annotations

import torch
from torch import Tensor

from ....errors import PackageError
from ..registry import mil_op
from .resizing import grid

UNVERIFIED: dict[str, str] = {
    "resample reflection without align_corners, symmetric with it": (
        "torch has only the other two; these follow the examples of the definition"
    ),
    "resample of unnormalized coordinates with padding reflection or symmetric": "as above; torch has no such coordinates",
    "crop_resize CENTER_SIZE_HEIGHT_FIRST and CENTER_SIZE_WIDTH_FIRST": (
        "the definition names centre and size only; the corners are taken as centre -+ size / 2"
    ),
    "crop_resize DEFAULT and UNALIGN_CORNERS": (
        "documented for a whole image; a box from a to b is taken as an image of b - a + 1. For UNALIGN_CORNERS, the one value "
        "in coremltools' tests, of an inverted box outside the image, is that of the whole image resized and fits no box"
    ),
    "crop_resize OFFSET_CORNERS of boxes narrower than a pixel": "the definition keeps points inside the box, RoiAlign does not",
    "crop_resize of inverted boxes, but with ALIGN_CORNERS": "not documented; the box is sampled from its end to its start",
}
_BOX_ORDER = {  # where each kind of box holds height first, width first, height second, width second
    "CORNERS_HEIGHT_FIRST": (0, 1, 2, 3),
    "CORNERS_WIDTH_FIRST": (1, 0, 3, 2),
    "CENTER_SIZE_HEIGHT_FIRST": (0, 1, 2, 3),
    "CENTER_SIZE_WIDTH_FIRST": (1, 0, 3, 2),
}


@mil_op("affine")
def affine(
    x: Tensor,
    transform_matrix: Tensor,
    output_height: int,
    output_width: int,
    sampling_mode: str,
    padding_mode: str,
    padding_value: float,
    coordinates_mode: str,
    align_corners: bool,
) -> Tensor:
    """Output (x, y) takes the input at (a0 x + a1 y + a2, b0 x + b1 y + b2), all from -1 to 1.

    The definition calls align_corners=False unsupported but lets it pass; it is torch's affine_grid and grid_sample.
    """
    allowed = {"sampling_mode": "bilinear", "padding_mode": "constant", "coordinates_mode": "normalized_minus_one_to_one"}
    for (name, only), value in zip(allowed.items(), (sampling_mode, padding_mode, coordinates_mode), strict=True):
        if value.lower() != only:  # coremltools takes upper case too
            raise PackageError(f"{name} is {value!r}, and the operation has {only} only")
    if padding_value:
        raise PackageError(f"padding_value is {padding_value}, and the operation has 0 only")
    if x.ndim != 4 or transform_matrix.ndim != 2 or transform_matrix.shape[1] != 6 or len(transform_matrix) not in (1, len(x)):
        raise PackageError(f"transforms of shape {tuple(transform_matrix.shape)} do not fit images of shape {tuple(x.shape)}")
    if min(output_height, output_width) < 0:
        raise PackageError(f"there is no image of {output_height} by {output_width}")
    across = _normalized_centres(output_width, align_corners)
    down = _normalized_centres(output_height, align_corners)[:, None]
    rows = transform_matrix.double()[:, :, None, None].expand(len(x), -1, -1, -1)
    columns, lines = (rows[:, at] * across + rows[:, at + 1] * down + rows[:, at + 2] for at in (0, 3))
    return _sampled(
        x,
        _pixels(lines, x.shape[2], allowed["coordinates_mode"], align_corners),
        _pixels(columns, x.shape[3], allowed["coordinates_mode"], align_corners),
        allowed["sampling_mode"],
        allowed["padding_mode"],
        0.0,
    )


@mil_op("resample")
def resample(
    x: Tensor,
    coordinates: Tensor,
    sampling_mode: str,
    padding_mode: str,
    padding_value: float,
    coordinates_mode: str,
    align_corners: bool,
) -> Tensor:
    """Coordinates are (x, y). Unnormalized ones count pixels, whatever align_corners says.

    A place half between two pixels is nearest to the even one, as in torch. Where a coordinate is not a number, the
    bilinear result is none either.
    """
    if x.ndim != 4 or coordinates.ndim != 4 or coordinates.shape[3] != 2 or len(coordinates) != len(x):
        raise PackageError(f"coordinates of shape {tuple(coordinates.shape)} do not fit images of shape {tuple(x.shape)}")
    places = coordinates.double()
    lines, columns = (_pixels(places[..., at], x.shape[axis], coordinates_mode, align_corners) for at, axis in ((1, 2), (0, 3)))
    return _sampled(x, lines, columns, sampling_mode, padding_mode, padding_value)


@mil_op("crop_resize", until="iOS15")
def crop_resize_ios15(
    x: Tensor,
    roi: Tensor,
    target_height: int = 1,
    target_width: int = 1,
    normalized_coordinates: bool = False,
    spatial_scale: float = 1.0,
    box_coordinate_mode: str = "CORNERS_HEIGHT_FIRST",
    sampling_mode: str = "DEFAULT",
) -> Tensor:
    return crop_resize_ios16(x, roi, target_height, target_width, normalized_coordinates, spatial_scale, box_coordinate_mode, sampling_mode)


@mil_op("crop_resize", since="iOS16", until="iOS16")
def crop_resize_ios16(
    x: Tensor,
    roi: Tensor,
    target_height: int = 1,
    target_width: int = 1,
    normalized_coordinates: bool = False,
    spatial_scale: float = 1.0,
    box_coordinate_mode: str = "CORNERS_HEIGHT_FIRST",
    sampling_mode: str = "DEFAULT",
    pad_value: float = 0.0,
) -> Tensor:
    """Boxes of 4 numbers are cut from every image, (N, B, C, h, w); those of 5 from the image named first, (N, 1, C, h, w).

    coremltools infers (N, B, C, h, w) for both, so that a package with the latter and a fixed batch beyond 1 contradicts itself.
    """
    if x.ndim != 4 or roi.ndim != 5 or roi.shape[1] != 1 or roi.shape[2] not in (4, 5) or tuple(roi.shape[3:]) != (1, 1):
        raise PackageError(f"boxes of shape {tuple(roi.shape)} do not fit images of shape {tuple(x.shape)}")
    boxes = roi[:, 0, :, 0, 0]
    images = boxes[:, :1].long() if boxes.shape[1] == 5 else torch.arange(len(x)).repeat(len(boxes), 1)
    crops = _crops(
        x,
        boxes[:, -4:].repeat_interleave(images.shape[1], dim=0),
        images.reshape(-1),
        (target_height, target_width),
        normalized_coordinates,
        spatial_scale,
        box_coordinate_mode,
        sampling_mode,
        pad_value,
    )
    return crops.reshape(*images.shape, *crops.shape[1:])


@mil_op("crop_resize", since="iOS17")
def crop_resize(
    x: Tensor,
    boxes: Tensor,
    box_indices: Tensor | None = None,
    target_height: int = 1,
    target_width: int = 1,
    normalized_coordinates: bool = False,
    spatial_scale: float = 1.0,
    box_coordinate_mode: str = "CORNERS_HEIGHT_FIRST",
    sampling_mode: str = "DEFAULT",
    pad_value: float = 0.0,
) -> Tensor:
    """Box i is cut from image box_indices[i], i by default. Boxes may be integers unless normalized."""
    images = torch.arange(len(boxes)) if box_indices is None else box_indices.long()
    if x.ndim != 4 or boxes.ndim != 2 or boxes.shape[1] != 4 or images.shape != boxes.shape[:1]:
        raise PackageError(f"boxes of shape {tuple(boxes.shape)} do not fit images of shape {tuple(x.shape)}, or their indices")
    if normalized_coordinates and not boxes.is_floating_point():
        raise PackageError("normalized boxes of integers are not defined")
    return _crops(
        x,
        boxes,
        images,
        (target_height, target_width),
        normalized_coordinates,
        spatial_scale,
        box_coordinate_mode,
        sampling_mode,
        pad_value,
    )


def _crops(
    x: Tensor,
    boxes: Tensor,
    images: Tensor,
    target: tuple[int, int],
    normalized: bool,
    scale: float,
    box_mode: str,
    sampling_mode: str,
    pad_value: float,
) -> Tensor:
    """A crop for each box (N, 4) of the image of its index. A point outside the image is `pad_value` whole, as in TensorFlow."""
    if box_mode not in _BOX_ORDER:
        raise PackageError(f"the box_coordinate_mode {box_mode!r} is unknown; known are {', '.join(_BOX_ORDER)}")
    if min(target) < 1:
        raise PackageError(f"there is no crop of {target[0]} by {target[1]}")
    if bool(((images < 0) | (images >= len(x))).any()):
        raise PackageError(f"boxes name images {images.tolist()}, and there are {len(x)}")
    numbers = boxes.double()[:, list(_BOX_ORDER[box_mode])] * scale
    first, second = numbers[:, :2], numbers[:, 2:]
    if box_mode.startswith("CENTER"):
        first, second = first - second / 2, first + second / 2
    points, inside = [], []
    for axis, count in enumerate(target):
        last = x.shape[2 + axis] - 1
        unit = last if normalized else 1
        start, end = first[:, axis, None] * unit, second[:, axis, None] * unit
        found = start + torch.sign(end - start) * grid(sampling_mode, (end - start).abs()[:, 0], count)
        # rounding must not carry the last point of a box past the edge of the image
        found = torch.minimum(torch.maximum(found, torch.minimum(start, end)), torch.maximum(start, end))
        points.append(found)
        inside.append((found >= 0) & (found <= last))
    crops = _bilinear(x, images[:, None, None], points[0][:, :, None], points[1][:, None, :], None)
    within = inside[0][:, None, :, None] & inside[1][:, None, None, :]
    return torch.where(within, crops, pad_value)


def _normalized_centres(size: int, align_corners: bool) -> Tensor:
    """Where the pixels of a line lie between -1 and 1; a single one in the middle."""
    index = torch.arange(size, dtype=torch.float64)
    if align_corners:
        return 2 * index / (size - 1) - 1 if size > 1 else index
    return (2 * index + 1) / max(1, size) - 1


def _pixels(places: Tensor, size: int, mode: str, align_corners: bool) -> Tensor:
    """Coordinates along an axis in pixels; 0 is the centre of the first one."""
    if mode == "unnormalized":
        return places
    if mode == "normalized_minus_one_to_one":
        places = (places + 1) / 2
    elif mode != "normalized_zero_to_one":
        raise PackageError(f"the coordinates_mode {mode!r} is unknown")
    return places * (size - 1) if align_corners else places * size - 0.5


def _sampled(x: Tensor, lines: Tensor, columns: Tensor, sampling_mode: str, padding_mode: str, padding_value: float) -> Tensor:
    """Images (B, C, H, W) at places (B, h, w)."""
    lines, columns = _folded(lines, x.shape[2], padding_mode), _folded(columns, x.shape[3], padding_mode)
    batch = torch.arange(len(x))[:, None, None]
    outside = padding_value if padding_mode == "constant" else None
    if sampling_mode == "bilinear":
        return _bilinear(x, batch, lines, columns, outside)
    if sampling_mode == "nearest":
        return _picked(x, batch, lines.round(), columns.round(), outside).permute(0, 3, 1, 2)
    raise PackageError(f"the sampling_mode {sampling_mode!r} is unknown")


def _folded(places: Tensor, size: int, padding_mode: str) -> Tensor:
    """Places beyond an axis, brought back into it as its padding has them; for a constant, just not far away."""
    last = size - 1
    if padding_mode == "constant":
        return places.clamp(-1, size)
    if padding_mode == "border":
        return places.clamp(0, last)
    if padding_mode == "reflection":
        return _reflected(places, 0, last)
    if padding_mode == "symmetric":
        return _reflected(places, -0.5, last + 0.5).clamp(0, last)
    raise PackageError(f"the padding_mode {padding_mode!r} is unknown")


def _reflected(places: Tensor, low: float, high: float) -> Tensor:
    """Mirrored at both ends until within them."""
    period = 2 * (high - low)
    if period <= 0:
        return torch.full_like(places, low)
    ahead = torch.remainder(places - low, period)
    return low + torch.minimum(ahead, period - ahead)


def _bilinear(x: Tensor, batch: Tensor, lines: Tensor, columns: Tensor, outside: float | None) -> Tensor:
    """Images at fractional places: (N, C, h, w), where `batch`, `lines` and `columns` broadcast to (N, h, w)."""
    top, left = lines.floor(), columns.floor()
    down, across = (lines - top).to(x.dtype)[..., None], (columns - left).to(x.dtype)[..., None]
    upper, lower = (
        torch.lerp(_picked(x, batch, line, left, outside), _picked(x, batch, line, left + 1, outside), across) for line in (top, top + 1)
    )
    return torch.lerp(upper, lower, down).permute(0, 3, 1, 2)


def _picked(x: Tensor, batch: Tensor, lines: Tensor, columns: Tensor, outside: float | None) -> Tensor:
    """Pixels (N, h, w, C) at whole places; beyond the edges those of the edges, or `outside`."""
    height, width = x.shape[2:]
    if not height or not width:
        raise PackageError(f"an image of {height} by {width} has no pixels")
    at = [places.nan_to_num(0.0, 0.0, 0.0).clamp(0, size - 1).long() for places, size in ((lines, height), (columns, width))]
    found = x.permute(0, 2, 3, 1)[batch, at[0], at[1]]
    if outside is None:
        return found
    within = (lines >= 0) & (lines < height) & (columns >= 0) & (columns < width)
    return torch.where(within[..., None], found, outside)
