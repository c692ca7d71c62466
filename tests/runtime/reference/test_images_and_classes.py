from __future__ import annotations

from pathlib import Path
from typing import Any

import coremltools as ct
import numpy as np
import pytest
import torch
from PIL import Image  # comes with matplotlib
from rvc_coreml.errors import PackageError
from rvc_coreml.runtime.reference import ReferenceModel
from support.networks import convert_torch
from support.programs import close, normal
from torch import Tensor

HEIGHT, WIDTH = 6, 8
LAYOUTS = {"RGB": ct.colorlayout.RGB, "BGR": ct.colorlayout.BGR, "GRAYSCALE": ct.colorlayout.GRAYSCALE}
SCALE, BIAS = 1 / 127.5, {"RGB": [-1.0, -0.5, 0.25], "BGR": [-1.0, -0.5, 0.25], "GRAYSCALE": -0.75}


class Vision(torch.nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = torch.nn.Conv2d(channels, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.conv(x)).mean(dim=(2, 3))


def pixels(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def vision(folder: Path, layout: str, size: Any = None, **options: Any) -> tuple[Vision, ReferenceModel]:
    torch.manual_seed(0)
    channels = 1 if layout == "GRAYSCALE" else 3
    network, shape = Vision(channels).eval(), (1, channels, HEIGHT, WIDTH)
    image = ct.ImageType("x", shape=size or shape, scale=SCALE, bias=BIAS[layout], color_layout=LAYOUTS[layout])
    return network, ReferenceModel(convert_torch(folder, network, [torch.zeros(shape)], inputs=[image], **options))


def expected(network: Vision, layout: str, image: np.ndarray) -> np.ndarray:
    """What torch gives for an image of (height, width) or (height, width, red green blue), prepared as ImageType says."""
    planes = image[None] if image.ndim == 2 else np.moveaxis(image[:, :, ::-1] if layout == "BGR" else image, 2, 0)
    prepared = planes.astype(np.float32) * np.float32(SCALE) + np.float32(BIAS[layout]).reshape(-1, 1, 1)
    with torch.no_grad():
        return network(torch.from_numpy(prepared[None])).numpy()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_an_image_is_prepared_and_given_in_its_layout(tmp_path: Path, layout: str) -> None:
    network, model = vision(tmp_path, layout)
    assert model.inputs["x"].image is not None
    assert model.inputs["x"].image.layout == layout
    image = pixels(HEIGHT, WIDTH) if layout == "GRAYSCALE" else pixels(HEIGHT, WIDTH, 3)
    wanted = expected(network, layout, image)
    planes = image[None, None] if image.ndim == 2 else np.moveaxis(image, 2, 0)[None]
    given = [image, image.astype(np.float64), torch.from_numpy(image), planes[:, ::-1] if layout == "BGR" else planes]
    given.append(image[:, :, None] if image.ndim == 2 else np.dstack([image, pixels(HEIGHT, WIDTH)]))
    for value in given:
        (got,) = model.predict({"x": value}).values()
        close(got, wanted, 1e-5)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_pil_images_are_taken_in_the_mode_that_fits(tmp_path: Path, layout: str) -> None:
    network, model = vision(tmp_path, layout)
    image = pixels(HEIGHT, WIDTH) if layout == "GRAYSCALE" else pixels(HEIGHT, WIDTH, 3)
    (got,) = model.predict({"x": Image.fromarray(image)}).values()
    close(got, expected(network, layout, image), 1e-5)
    for mode in ("P", "1", "CMYK", "RGB" if layout == "GRAYSCALE" else "L"):
        with pytest.raises(PackageError, match=f"is a PIL image of mode {mode}"):
            model.predict({"x": Image.new(mode, (WIDTH, HEIGHT))})


@pytest.mark.parametrize("shape", [(6, 8), (8, 6, 3), (6, 8, 2), (2, 3, 6, 8), (3,), (1, 1, 3, 6, 8)])
def test_an_image_of_another_shape_is_refused(tmp_path: Path, shape: tuple[int, ...]) -> None:
    _network, model = vision(tmp_path, "RGB")
    with pytest.raises(PackageError, match=r"input 'x' is .* and should be \(1, 3, 6, 8\), RGB image"):
        model.predict({"x": np.zeros(shape)})


def test_images_of_flexible_size(tmp_path: Path) -> None:
    size = (1, 3, ct.RangeDim(4, 12, default=HEIGHT), ct.RangeDim(5, 9, default=WIDTH))
    network, model = vision(tmp_path, "RGB", size)
    assert model.inputs["x"].describe() == "fp32 (1, 3, 4..12, 5..9), RGB image"
    for height, width in ((4, 5), (12, 9)):
        image = pixels(height, width, 3)
        (got,) = model.predict({"x": image}).values()
        close(got, expected(network, "RGB", image), 1e-5)
    for height, width in ((3, 5), (4, 10)):
        with pytest.raises(PackageError, match="input 'x'"):
            model.predict({"x": pixels(height, width, 3)})


def test_images_of_enumerated_sizes(tmp_path: Path) -> None:
    network, model = vision(tmp_path, "RGB", ct.EnumeratedShapes([(1, 3, 6, 8), (1, 3, 8, 6)]))
    for height, width in ((6, 8), (8, 6)):
        image = pixels(height, width, 3)
        (got,) = model.predict({"x": image}).values()
        close(got, expected(network, "RGB", image), 1e-5)
    with pytest.raises(PackageError, match="input 'x'"):
        model.predict({"x": pixels(6, 6, 3)})


class Brighten(torch.nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * 1.5


def test_an_image_among_the_outputs_is_given_as_the_program_computes_it(tmp_path: Path) -> None:
    image = ct.ImageType("x", shape=(1, 3, HEIGHT, WIDTH), color_layout=ct.colorlayout.RGB)
    output = ct.ImageType("y", color_layout=ct.colorlayout.RGB)
    path = convert_torch(tmp_path, Brighten(), [torch.zeros(1, 3, HEIGHT, WIDTH)], inputs=[image], outputs=[output])
    model = ReferenceModel(path)
    assert model.outputs["y"].image is not None
    given = pixels(HEIGHT, WIDTH, 3)
    np.testing.assert_array_equal(model.predict({"x": given})["y"], np.moveaxis(given, 2, 0)[None].astype(np.float32) * np.float32(1.5))


def test_half_precision_grey_images(tmp_path: Path) -> None:
    image = ct.ImageType("x", shape=(1, 1, HEIGHT, WIDTH), color_layout=ct.colorlayout.GRAYSCALE_FLOAT16)
    output = ct.ImageType("y", color_layout=ct.colorlayout.GRAYSCALE_FLOAT16)
    options = {"inputs": [image], "outputs": [output], "opset": "iOS16", "precision": "fp16"}
    model = ReferenceModel(convert_torch(tmp_path, Brighten(), [torch.zeros(1, 1, HEIGHT, WIDTH)], **options))
    given = normal(HEIGHT, WIDTH)
    got = model.predict({"x": given})["y"]
    np.testing.assert_array_equal(got, given[None, None].astype(np.float16) * np.float16(1.5))


class Classifier(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return torch.softmax(self.linear(x), dim=-1)


@pytest.mark.parametrize("labels", [["cat", "dog", "bird"], [10, 20, 30]], ids=["str", "int"])
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_classifier_gives_its_label_and_every_probability(tmp_path: Path, labels: list[Any], precision: str) -> None:
    torch.manual_seed(0)
    network = Classifier().eval()
    config = ct.ClassifierConfig(labels, predicted_feature_name="label")
    path = convert_torch(tmp_path, network, [torch.zeros(1, 4)], precision=precision, classifier_config=config)
    model = ReferenceModel(path)
    seen = set()
    for seed in range(8):
        x = normal(1, 4, seed=seed) * 3
        with torch.no_grad():
            wanted = network(torch.from_numpy(x)).numpy()[0]
        got = model.predict({"x" if "x" in model.inputs else "in0": x})
        assert set(got) == {"label", "label_probs"}
        assert got["label"] == labels[int(wanted.argmax())]
        assert type(got["label"]) is type(labels[0])
        assert list(got["label_probs"]) == labels
        np.testing.assert_allclose(list(got["label_probs"].values()), wanted, atol=1e-6 if precision == "fp32" else 3e-3)
        seen.add(got["label"])
    assert len(seen) > 1
