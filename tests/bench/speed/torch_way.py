"""The same trainings in PyTorch, where it is installed: EfficientNets of torchvision or timm, with random weights."""

import importlib.util
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from tests.bench.speed.photos import BATCH, FINETUNE_BATCH, FINETUNE_LAYERS, Setup
from tests.bench.speed.ways import Seconds

_DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# Of ImageNet's pixels in [0, 1], by channel.
_MEAN, _DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def sweep(setup: Setup, root: Path, place: Path, rates: Sequence[float]) -> Iterator[Seconds]:
    """Train heads on the features of one pass, one for each rate; yield the duration of each."""
    started = time.perf_counter()
    backbone, splits, classes = _prepare(setup, root, place)
    for layer in backbone.parameters():
        layer.requires_grad_(False)
    backbone.eval()
    features = {}
    with torch.inference_mode(), _bfloat16():
        for name, (images, labels) in splits.items():
            parts = [backbone(_network_input(images[first : first + BATCH])) for first in range(0, len(images), BATCH)]
            features[name] = (torch.cat(parts).float().clone(), labels)
    for rate in rates:
        head = _head(features["train"][0].shape[1], classes)
        _fit(head, features, torch.optim.Adam(head.parameters(), rate), setup.epochs, BATCH, lambda inputs: inputs)
        yield Seconds(time.perf_counter() - started)
        started = time.perf_counter()


def finetunes(setup: Setup, root: Path, place: Path, rates: Sequence[float], epochs: int) -> Iterator[Seconds]:
    """Train the backbone's last layers and a head, once for each rate; yield the duration of each."""
    for rate in rates:
        started = time.perf_counter()
        backbone, splits, classes = _prepare(setup, root, place)
        layers = [layer for layer in backbone.modules() if not list(layer.children())]
        for layer in layers[:-FINETUNE_LAYERS]:
            for weights in layer.parameters():
                weights.requires_grad_(False)
        backbone.eval()
        width = backbone(_network_input(splits["train"][0][:1])).shape[1]
        network = torch.nn.Sequential(backbone, _head(width, classes))
        trained = [weights for weights in network.parameters() if weights.requires_grad]
        optimizer = torch.optim.Adam(trained, rate)
        ends = _fit(network, splits, optimizer, epochs, FINETUNE_BATCH, _network_input)
        seconds = time.perf_counter() - started
        left = setup.epochs - epochs
        yield Seconds(seconds + left * (ends[-1] - ends[-2]) if left else seconds, not left)


def _prepare(setup: Setup, root: Path, place: Path) -> tuple[Any, dict[str, tuple[Any, Any]], int]:
    """Return a backbone without its classifier, images and labels of each split, and the number of classes."""
    run = setup.compose(root, place)
    dataset, size = run.data.open(), run.model.image_size
    torch.manual_seed(0)
    name = getattr(run.model, "architecture", "").lower().replace("efficientnet", "efficientnet_")
    if importlib.util.find_spec("timm"):
        import timm

        backbone = timm.create_model(name, pretrained=False, num_classes=0)
    else:
        import torchvision

        backbone = getattr(torchvision.models, name)(weights=None)
        backbone.classifier = torch.nn.Identity()
    splits = {}
    for split_name, split in (("train", dataset.train), ("val", dataset.val)):
        paths = [root / split.source.ids[row] for row in split.rows]
        images = np.stack([np.asarray(Image.open(path).convert("RGB").resize((size, size))) for path in paths])
        splits[split_name] = (torch.from_numpy(images), torch.from_numpy(split.labels.astype(np.int64)).to(_DEVICE))
    return backbone.to(_DEVICE, memory_format=torch.channels_last), splits, len(dataset.class_names)


def _network_input(images: Any) -> Any:
    """Return a batch of images [b, s, s, 3] uint8 as normalised channels-last input."""
    pixels = images.to(_DEVICE).permute(0, 3, 1, 2).float() / 255
    mean, deviation = (torch.tensor(values, device=_DEVICE) for values in (_MEAN, _DEVIATION))
    normalised = (pixels - mean[:, None, None]) / deviation[:, None, None]
    return normalised.contiguous(memory_format=torch.channels_last)


def _head(width: int, classes: int) -> Any:
    layers: list[Any] = []
    for units in (512, 256):
        layers += [torch.nn.Linear(width, units), torch.nn.ReLU(), torch.nn.Dropout(0.5)]
        width = units
    return torch.nn.Sequential(*layers, torch.nn.Linear(width, classes)).to(_DEVICE)


def _fit(network: Any, splits: dict, optimizer: Any, epochs: int, batch: int, to_input: Any) -> list[float]:
    """Train and validate, and return when each epoch ended."""
    ends = []
    inputs, labels = splits["train"]
    for _ in range(epochs):
        order = torch.randperm(len(inputs))
        for first in range(0, len(inputs), batch):
            rows = order[first : first + batch]
            optimizer.zero_grad()
            with _bfloat16():
                loss = torch.nn.functional.cross_entropy(network(to_input(inputs[rows])), labels[rows])
            loss.backward()
            optimizer.step()
        with torch.inference_mode(), _bfloat16():
            for first in range(0, len(splits["val"][0]), batch):
                network(to_input(splits["val"][0][first : first + batch]))
        ends.append(time.perf_counter())
    return ends


def _bfloat16() -> Any:
    return torch.autocast(_DEVICE, dtype=torch.bfloat16)
