"""Flexible SPC water as a potential of torch-sim: liquid water and clusters without a trained network.

SPC/Fw (Wu, Tepper, Voth, J. Chem. Phys. 124, 024503 (2006)) with the charges damped and shifted to zero at the cutoff
in place of an Ewald sum (Fennell, Gezelter, J. Chem. Phys. 124, 234104 (2006), Eq. 18). Molecules are O, H, H in this
order. It serves tests, benchmarks and tutorials, and shows what a torch potential needs to become one of torch-sim.
"""

from __future__ import annotations

import math
from typing import Any

import torch

from mimyria_wf.errors import EngineError
from mimyria_wf.torchsim_models import import_torch_sim

KCAL_PER_MOL = 0.0433641
"""[eV]"""
COULOMB = 14.399645
"""e^2/(4 pi eps0) [eV A]"""
BOND, BOND_LENGTH = 1059.162 * KCAL_PER_MOL, 1.012
"""k/2 (r - r0)^2: k [eV/A^2], r0 [A]."""
ANGLE, ANGLE_ZERO = 75.90 * KCAL_PER_MOL, math.radians(113.24)
"""k/2 (theta - theta0)^2: k [eV/rad^2], theta0 [rad]."""
SIGMA, EPSILON = 3.165492, 0.1554253 * KCAL_PER_MOL
"""Lennard-Jones between oxygen atoms [A], [eV]."""
CHARGES = {8: -0.82, 1: 0.41}
"""[e]"""


def flexible_water(*, device: torch.device, dtype: torch.dtype, cutoff: float = 9.0, damping: float = 0.2) -> Any:
    """Return the potential.

    All pairs of molecules are computed, at their nearest image: for some hundred molecules, in cells at least twice as
    wide as the cutoff.

    Args:
        device: of the potential.
        dtype: of the potential.
        cutoff: of all pairs but bonded ones [A]; pairs beyond it are left out, the energy is smooth there.
        damping: of the charges [1/A].

    Raises:
        EngineError: torch-sim is missing.
    """
    interface = import_torch_sim("torch_sim.models.interface").ModelInterface

    class FlexibleWater(interface):  # type: ignore[misc, valid-type]  # torch-sim may be missing when this is read
        def __init__(self) -> None:
            super().__init__()
            self._device, self._dtype = device, dtype
            self._compute_forces, self._compute_stress = True, False
            self._known: tuple[torch.Tensor, torch.Tensor] | None = None

        def forward(self, state: Any, **_: Any) -> dict[str, torch.Tensor]:
            if self._known is None or not (
                torch.equal(self._known[0], state.atomic_numbers) and torch.equal(self._known[1], state.system_idx)
            ):
                self._known = state.atomic_numbers, state.system_idx
                self._pairs = _pairs(state.atomic_numbers, state.system_idx)
            with torch.enable_grad():
                positions = state.positions.detach().requires_grad_(True)
                energy = _energy(positions, state, self._pairs, cutoff, damping)
                (gradient,) = torch.autograd.grad(energy.sum(), positions)
            return {"energy": energy.detach(), "forces": -gradient}

    return FlexibleWater()


def _pairs(numbers: torch.Tensor, systems: torch.Tensor) -> torch.Tensor:
    """Return the pairs (2, n_pairs) of atoms of different molecules of the same structure.

    Raises:
        EngineError: the atoms are not O, H, H, O, H, H, ...
    """
    if len(numbers) % 3 or not torch.equal(numbers, numbers.new_tensor([8, 1, 1]).repeat(len(numbers) // 3)):
        raise EngineError("flexible water takes molecules as O, H, H, one after the other")
    pairs = []
    first = 0
    for n_atoms in systems.bincount().tolist():
        i, j = torch.triu_indices(n_atoms, n_atoms, 1, device=numbers.device)
        is_other = i // 3 != j // 3
        pairs.append(torch.stack([i[is_other], j[is_other]]) + first)
        first += n_atoms
    return torch.cat(pairs, 1)


def _energy(positions: torch.Tensor, state: Any, pairs: torch.Tensor, cutoff: float, damping: float) -> torch.Tensor:
    """Return the energies (n_structures,) [eV] of positions (n_atoms, 3) [A]."""
    inverse = torch.linalg.inv(state.cell) if state.pbc else None
    if inverse is not None and float((1 / inverse.norm(dim=2)).min()) < 2 * cutoff:
        raise EngineError(f"flexible water needs a cell at least twice as wide as its cutoff of {cutoff:g} A")

    def between(i: torch.Tensor, j: torch.Tensor) -> torch.Tensor:
        vectors = positions[j] - positions[i]
        if inverse is None:
            return vectors
        system = state.system_idx[i]
        crossed = torch.round(torch.einsum("nab,nb->na", inverse[system], vectors.detach()))
        return vectors - torch.einsum("nab,nb->na", state.cell[system], crossed)

    oxygen = torch.arange(0, len(positions), 3, device=positions.device)
    one, two = between(oxygen, oxygen + 1), between(oxygen, oxygen + 2)
    lengths = torch.stack([one.norm(dim=1), two.norm(dim=1)])
    angle = torch.acos((one * two).sum(1) / (lengths[0] * lengths[1]))
    bonded = BOND / 2 * ((lengths - BOND_LENGTH) ** 2).sum(0) + ANGLE / 2 * (angle - ANGLE_ZERO) ** 2

    distances = between(pairs[0], pairs[1]).norm(dim=1)
    near = distances < cutoff
    i, j, r = pairs[0][near], pairs[1][near], distances[near]
    # erfc(a r)/r less its value and slope at the cutoff: energy and force go to zero there
    gaussian = 2 * damping / math.sqrt(math.pi) * math.exp(-((damping * cutoff) ** 2)) / cutoff
    value = math.erfc(damping * cutoff) / cutoff
    slope = value / cutoff + gaussian
    charges = positions.new_tensor([CHARGES[8], CHARGES[1], CHARGES[1]]).repeat(len(oxygen))
    coulomb = COULOMB * charges[i] * charges[j] * (torch.erfc(damping * r) / r - value + slope * (r - cutoff))
    is_oxygen = (i % 3 == 0) & (j % 3 == 0)
    sixth = (SIGMA / r[is_oxygen]) ** 6
    end = (SIGMA / cutoff) ** 6
    # shifted likewise
    steep = 24 * EPSILON * (2 * end**2 - end) / cutoff
    dispersion = 4 * EPSILON * (sixth**2 - sixth - end**2 + end) + steep * (r[is_oxygen] - cutoff)

    energy = positions.new_zeros(len(state.cell))
    energy = energy.index_add(0, state.system_idx[oxygen], bonded)
    energy = energy.index_add(0, state.system_idx[i], coulomb)
    return energy.index_add(0, state.system_idx[i[is_oxygen]], dispersion)
