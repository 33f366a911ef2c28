"""What the tests share."""

from __future__ import annotations

from pathlib import Path

import pytest

REFERENCE_DATA = Path(__file__).parents[1].parent / "shared" / "data"


@pytest.fixture
def reference_data() -> Path:
    """Return the folder with reference data made elsewhere; skip the test where it is not there."""
    if not REFERENCE_DATA.is_dir():
        pytest.skip(f"needs the reference data in {REFERENCE_DATA}")
    return REFERENCE_DATA
