"""WordNet ids in class names, which match the classes of a data set with ImageNet's 1000 outputs."""

import re
from collections.abc import Sequence

# WordNet ids of the dogs among ImageNet's 1000 classes. They ascend in the order of the outputs, of which 269 to 272
# are wolves. Stanford Dogs has all of them except the dalmatian, 2110341.
# Source: Russakovsky et al. 2015, ILSVRC 2012.
_DOG_IDS = """
2085620 2085782 2085936 2086079 2086240 2086646 2086910 2087046 2087394 2088094 2088238 2088364 2088466 2088632 2089078
2089867 2089973 2090379 2090622 2090721 2091032 2091134 2091244 2091467 2091635 2091831 2092002 2092339 2093256 2093428
2093647 2093754 2093859 2093991 2094114 2094258 2094433 2095314 2095570 2095889 2096051 2096177 2096294 2096437 2096585
2097047 2097130 2097209 2097298 2097474 2097658 2098105 2098286 2098413 2099267 2099429 2099601 2099712 2099849 2100236
2100583 2100735 2100877 2101006 2101388 2101556 2102040 2102177 2102318 2102480 2102973 2104029 2104365 2105056 2105162
2105251 2105412 2105505 2105641 2105855 2106030 2106166 2106382 2106550 2106662 2107142 2107312 2107574 2107683 2107908
2108000 2108089 2108422 2108551 2108915 2109047 2109525 2109961 2110063 2110185 2110341 2110627 2110806 2110958 2111129
2111277 2111500 2111889 2112018 2112137 2112350 2112706 2113023 2113186 2113624 2113712 2113799 2113978 2115641 2115913
2116738
"""
_IMAGENET_OUTPUTS = dict(zip(map(int, _DOG_IDS.split()), (*range(151, 269), 273, 274, 275), strict=True))
# Prefix such as that of n02085620-Chihuahua.
_WORDNET_ID = re.compile(r"n(\d{8})(?![0-9A-Za-z])")


def has_wordnet_id(class_name: str) -> bool:
    """Return whether a class name starts with a WordNet id, as in `n02085620-Chihuahua`."""
    return _WORDNET_ID.match(class_name) is not None


def _is_wordnet_id(text: str) -> bool:
    """Return whether a text is a WordNet id and nothing else."""
    return _WORDNET_ID.fullmatch(text) is not None


def imagenet_outputs(class_names: Sequence[str]) -> list[int | None]:
    """Return the index of each class among ImageNet's 1000 outputs; None if its name has no WordNet id of a dog."""
    matches = [_WORDNET_ID.match(name) for name in class_names]
    return [_IMAGENET_OUTPUTS.get(int(match[1])) if match else None for match in matches]


def display_name(class_name: str) -> str:
    """Return a class name for display: `n02085620-Mexican_hairless` becomes `Mexican hairless`."""
    prefix, dash, name = class_name.partition("-")
    return (name if dash and _is_wordnet_id(prefix) else class_name).replace("_", " ")
