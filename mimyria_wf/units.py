"""Unit conversions of the project, from the CODATA values in :mod:`scipy.constants`.

Inside the core units are fixed (docs/theory.md): A, fs, A/fs, u, eV for MD energies; E_h/a0 for label forces,
E_h/(e a0) for fields, e for APTs, e^2 a0/E_h for PGTs; cm^-1 for wavenumbers.
"""

import scipy.constants as _c

BOHR: float = _c.physical_constants["Bohr radius"][0] * 1e10
"""a0 [A]."""
HARTREE: float = _c.physical_constants["Hartree energy in eV"][0]
"""E_h [eV]."""
HARTREE_PER_BOHR: float = HARTREE / BOHR
"""E_h/a0 [eV/A]; also the atomic unit of field [V/A], 51.42207."""
AU_TIME: float = _c.physical_constants["atomic unit of time"][0] * 1e15
"""Atomic unit of time [fs]."""
BOHR_PER_AU_TIME: float = BOHR / AU_TIME
"""Atomic unit of velocity [A/fs]."""
BOLTZMANN_EV: float = _c.physical_constants["Boltzmann constant in eV/K"][0]
"""k_B [eV/K]."""
AMU_A2_PER_FS2: float = _c.atomic_mass * 1e10 / _c.e
"""u (A/fs)^2 [eV]."""
DEBYE: float = 1e-21 / _c.c / _c.e * 1e10
"""Debye [e A]."""
WAVENUMBER: float = 1e15 / (_c.c * 100)
"""1/fs [cm^-1]."""
E: float = _c.e
C: float = _c.c
EPS0: float = _c.epsilon_0
BOLTZMANN: float = _c.k
AMU: float = _c.atomic_mass
HBAR: float = _c.hbar
