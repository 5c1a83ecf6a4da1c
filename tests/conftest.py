"""What every test finds as it was: the plugins of one are not those of the next."""

from collections.abc import Iterator

import pytest

from hkd import registry


@pytest.fixture(autouse=True)
def plugins_of_its_own() -> Iterator[None]:
    before = dict(registry._plugins)
    yield
    registry._plugins.clear()
    registry._plugins.update(before)
