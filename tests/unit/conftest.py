"""What all unit tests share."""

import pytest

from tests.unit.memory_group import memory_group

__all__ = ["memory_group"]


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory):
    """What is remembered of files that were read does not end up in the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield
