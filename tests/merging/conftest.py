"""A base with an adapter, to be merged."""

from pathlib import Path
from types import SimpleNamespace

import pytest
from merges import copy_setting, write_originals


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Made once."""
    return write_originals(tmp_path_factory.mktemp("merge"))


@pytest.fixture
def setting(originals: Path, tmp_path: Path) -> SimpleNamespace:
    return copy_setting(originals, tmp_path)
