import json

import numpy as np
import pytest

from mimyria_wf.errors import LabelError
from mimyria_wf.metrics import tensor_errors


def test_hand_computed_values() -> None:
    # Two atoms of one species: xx is (1, 3) with sigma 1, predicted (2, 3): rmse sqrt(1/2), delta sqrt(1/2), R2 1/2.
    reference = np.zeros((2, 3, 3))
    reference[:, 0, 0] = [1.0, 3.0]
    reference[:, 1, 2] = [0.0, 4.0]
    prediction = reference.copy()
    prediction[0, 0, 0] = 2.0
    errors = tensor_errors(prediction, reference, np.array([8, 8]))
    oxygen = errors.by_species["O"]
    assert oxygen.by_component["xx"].rmse == pytest.approx(np.sqrt(0.5))
    assert oxygen.by_component["xx"].relative_rmse == pytest.approx(np.sqrt(0.5))
    assert oxygen.by_component["xx"].r2 == pytest.approx(0.5)
    assert oxygen.by_component["yz"].r2 == pytest.approx(1.0)
    assert np.isnan(oxygen.by_component["zz"].r2)  # the reference does not vary
    assert errors.r2 == pytest.approx(0.75)  # mean over the two components that vary
    assert errors.rmse == pytest.approx(np.sqrt(0.5) / 9)
    assert errors.overall_rmse == pytest.approx(np.sqrt(1 / 18))


def test_species_weigh_the_same() -> None:
    rng = np.random.default_rng(0)
    reference = rng.normal(size=(101, 3, 3, 3))
    prediction = reference.copy()
    numbers = np.array([1] * 99 + [16] * 2)
    prediction[99:] = reference[99:].mean(axis=0)  # the rare species is predicted by its mean: R2 = 0
    errors = tensor_errors(prediction, reference, numbers)
    assert errors.by_species["S"].r2 == pytest.approx(0.0, abs=1e-12)
    assert errors.by_species["H"].r2 == 1.0
    assert errors.r2 == pytest.approx(0.5)
    assert len(errors.by_species["S"].by_component) == 27
    assert "xyz" in errors.by_species["S"].by_component


def test_json_has_no_nan() -> None:
    errors = tensor_errors(np.zeros((1, 3, 3)), np.zeros((1, 3, 3)), np.array([1]))
    text = json.dumps(errors.to_dict(), allow_nan=False)
    assert json.loads(text)["r2"] is None


@pytest.mark.parametrize(
    ("prediction", "reference", "message"),
    [
        (np.zeros((2, 3, 3)), np.zeros((3, 3, 3)), "one shape"),
        (np.zeros((0, 3, 3)), np.zeros((0, 3, 3)), "no tensors"),
        (np.full((3, 3, 3), np.nan), np.zeros((3, 3, 3)), "not finite"),
    ],
)
def test_refusals(prediction: np.ndarray, reference: np.ndarray, message: str) -> None:
    with pytest.raises(LabelError, match=message):
        tensor_errors(prediction, reference, np.ones(len(reference), dtype=int))
