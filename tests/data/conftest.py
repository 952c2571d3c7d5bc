"""No network, and a small data set with copies in it."""

import pytest

from raysweep.data.audit import audit
from tests.data.planted_copies import dataset_of, jpeg, textures


@pytest.fixture(autouse=True)
def offline(no_network):
    """No test of this folder fetches anything."""


@pytest.fixture(scope="session")
def small():
    """Twelve images: 0 = 3 exactly across splits with another label, 1 mirrored in test, 2 as JPEG in val."""
    images = textures(12)
    images[8], images[9], images[5] = images[0], images[1][..., ::-1], jpeg(images[2], 80)
    return dataset_of(images, [0, 1, 0, 1, 0, 0, 1, 0, 1, 1, 0, 1], [range(5), range(5, 8), range(8, 12)])


@pytest.fixture(scope="session")
def found(small):
    return audit(small)
