"""Relations between the classes of a data set: superclasses, and similar classes for asymmetric noise.

Legend: K classes. A map is a dictionary from a class to the class that its labels turn into; classes that it leaves
out keep their labels.
"""

from collections.abc import Callable

from tadlib.errors import require

CIFAR100_SUPERCLASSES = {
    "aquatic_mammals": ("beaver", "dolphin", "otter", "seal", "whale"),
    "fish": ("aquarium_fish", "flatfish", "ray", "shark", "trout"),
    "flowers": ("orchid", "poppy", "rose", "sunflower", "tulip"),
    "food_containers": ("bottle", "bowl", "can", "cup", "plate"),
    "fruit_and_vegetables": ("apple", "mushroom", "orange", "pear", "sweet_pepper"),
    "household_electrical_devices": ("clock", "keyboard", "lamp", "telephone", "television"),
    "household_furniture": ("bed", "chair", "couch", "table", "wardrobe"),
    "insects": ("bee", "beetle", "butterfly", "caterpillar", "cockroach"),
    "large_carnivores": ("bear", "leopard", "lion", "tiger", "wolf"),
    "large_man-made_outdoor_things": ("bridge", "castle", "house", "road", "skyscraper"),
    "large_natural_outdoor_scenes": ("cloud", "forest", "mountain", "plain", "sea"),
    "large_omnivores_and_herbivores": ("camel", "cattle", "chimpanzee", "elephant", "kangaroo"),
    "medium_mammals": ("fox", "porcupine", "possum", "raccoon", "skunk"),
    "non-insect_invertebrates": ("crab", "lobster", "snail", "spider", "worm"),
    "people": ("baby", "boy", "girl", "man", "woman"),
    "reptiles": ("crocodile", "dinosaur", "lizard", "snake", "turtle"),
    "small_mammals": ("hamster", "mouse", "rabbit", "shrew", "squirrel"),
    "trees": ("maple_tree", "oak_tree", "palm_tree", "pine_tree", "willow_tree"),
    "vehicles_1": ("bicycle", "bus", "motorcycle", "pickup_truck", "train"),
    "vehicles_2": ("lawn_mower", "rocket", "streetcar", "tank", "tractor"),
}
"""CIFAR-100's 20 superclasses of five classes each (Krizhevsky 2009); both numbered in the order of their names."""


def superclass_groups() -> tuple[tuple[int, ...], ...]:
    """The classes of CIFAR-100 in each of its superclasses, by number."""
    number = {name: k for k, name in enumerate(sorted(sum(CIFAR100_SUPERCLASSES.values(), ())))}
    return tuple(tuple(number[name] for name in names) for names in CIFAR100_SUPERCLASSES.values())


def superclass_of() -> tuple[int, ...]:
    """The superclass of each of CIFAR-100's 100 classes."""
    of = {k: superclass for superclass, group in enumerate(superclass_groups()) for k in group}
    return tuple(of[k] for k in range(100))


def _rotation(group: tuple[int, ...]) -> dict[int, int]:
    return dict(zip(group, group[1:] + group[:1]))


def _cifar10(n_classes: int) -> dict[int, int]:
    """Truck to automobile, bird to airplane, cat to dog and back, deer to horse (Patrini et al. 2017)."""
    return {9: 1, 2: 0, 3: 5, 5: 3, 4: 7}


def _cifar100(n_classes: int) -> dict[int, int]:
    """Each class to the next of its superclass, the last to the first (Patrini et al. 2017)."""
    return {k: to for group in superclass_groups() for k, to in _rotation(group).items()}


def _tiny_imagenet(n_classes: int) -> dict[int, int]:
    """Neighbours in the order of WordNet ids are swapped, two by two; if the number is odd, the last three rotate.

    Our choice: no map is published. Ids follow WordNet's files, where kinds of one animal or fruit are neighbours
    (golden retriever and Labrador, orange and lemon); artefacts are in alphabetical order, so their pairs are less
    similar. Among all pairings of the classes present, this one has the least sum of differences between ids. It needs
    only the number of classes, which the loader sorts by id, so it covers parts of the data set too. Every class
    receives labels from one other class only, so at rates below one half most labels of every class are right.
    """
    require(n_classes >= 2, f"a map needs at least 2 classes, got {n_classes}")
    starts = list(range(0, n_classes - 1, 2))
    ends = [*starts[1:], n_classes]
    return {k: to for a, b in zip(starts, ends) for k, to in _rotation(tuple(range(a, b))).items()}


ASYMMETRIC_MAPS: dict[str, Callable[[int], dict[int, int]]] = {
    "cifar10": _cifar10,
    "cifar100": _cifar100,
    "tiny-imagenet": _tiny_imagenet,
}
"""Map of each data set that has one, given its number of classes."""
