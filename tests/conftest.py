"""What the tests share."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest

# before aiida is imported, which otherwise makes a folder in the home directory of whoever runs the tests
_HOME = tempfile.TemporaryDirectory(prefix="mimyria_wf-tests-", ignore_cleanup_errors=True)
os.environ["AIIDA_PATH"] = _HOME.name

REFERENCE_DATA = Path(__file__).parents[1].parent / "shared" / "data"


@pytest.fixture
def reference_data() -> Path:
    """Return the folder with reference data made elsewhere; skip the test where it is not there."""
    if not REFERENCE_DATA.is_dir():
        pytest.skip(f"needs the reference data in {REFERENCE_DATA}")
    return REFERENCE_DATA
