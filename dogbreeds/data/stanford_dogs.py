"""Stanford Dogs data set, loaded through TensorFlow Datasets."""

from dataclasses import dataclass

from dogbreeds.core.spec import number, one_of, path, seed
from dogbreeds.data.dataset import Data, Dataset, Split, stratified_split
from dogbreeds.data.labelled_files import whole
from dogbreeds.data.tfds import open_builder, tfds_source

_ABSENT = (
    "Stanford Dogs is not at {path} and could not be downloaded from vision.stanford.edu ({reason}). TensorFlow"
    " Datasets downloads and prepares it once, 778 MiB. Type data.root=<folder> if another machine prepared it,"
    " data=folder data.root=<images> for a folder of images, or model=miniature, which needs no download."
)


@dataclass(frozen=True, kw_only=True)
class StanfordDogs(Data):
    """Stanford Dogs: 120 classes, 12,000 training and 8,580 test images in the official split.

    Source: Khosla et al. 2011; https://www.tensorflow.org/datasets/catalog/stanford_dogs.

    Attributes:
        split: `official` holds validation data out of the official training data; `guide` splits all 20,580 images
            80/20 and has no test data, as the guide did.
        root: folder of TensorFlow Datasets; null for its default.
        val_fraction: fraction of each class to hold out for validation.
        split_seed: seed of the validation split with `official`.
        guide_seed: seed of the validation split with `guide`.
    """

    split: str = one_of("official", "guide")
    root: str | None = path(example="/data/tensorflow_datasets", optional=True)
    val_fraction: float = number(above=0, below=1, example=0.2)
    split_seed: int = seed()
    guide_seed: int = seed(example=42)

    def open(self) -> Dataset:
        builder = open_builder("stanford_dogs", self.root, _ABSENT)
        class_names = tuple(builder.info.features["label"].names)
        if self.split == "guide":
            source = tfds_source(builder, "train+test")
            train_rows, val_rows = stratified_split(source.labels, self.val_fraction, self.guide_seed, class_names)
            test: Split | None = None
        else:
            source = tfds_source(builder, "train")
            test_source = tfds_source(builder, "test")
            train_rows, val_rows = stratified_split(source.labels, self.val_fraction, self.split_seed, class_names)
            test = whole(test_source)
        return Dataset(
            name="stanford_dogs",
            class_names=class_names,
            train=Split(source, train_rows),
            val=Split(source, val_rows),
            test=test,
        )
