"""Raman scattering geometries, made from the 21 lineshapes afterwards.

``I = sum e_i,z e_s,x e_i,s e_s,t I_zxst`` (Eqs. 5 and 7), in the frame of the simulation: for crystals, surfaces and
whatever else has an orientation. Two ways of writing a geometry:

- Porto notation, ``k_i(e_i e_s)k_s``, such as ``Z(XX)-Z`` or ``X(ZY)Z``: light travels along k_i with polarization e_i
  and is seen along k_s through an analyser at e_s. A direction is X, Y or Z, with a minus sign or a macron for the
  opposite one, and with a prime for X' = (X + Y)/sqrt2, Y' = (Y - X)/sqrt2 (axes turned by 45 degrees about Z' = Z).
  The analyser may be ``u`` or ``*``: no analyser, both polarizations are seen. So may the incident polarization:
  natural light of the same intensity, half of it in either polarization.
- two polarization vectors, ``1,1,0:0,0,1``: incident, then scattered.
"""

import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from mimyria_wf.errors import SpectrumError
from mimyria_wf.spectrum import RamanKind, scattering_weights

Array = NDArray[Any]

MACRON = "\N{COMBINING MACRON}"
_DIRECTION = rf"-?[XYZ]{MACRON}?'?{MACRON}?"
_PORTO = re.compile(rf"({_DIRECTION})\(({_DIRECTION}|[uU*])({_DIRECTION}|[uU*])\)({_DIRECTION})")
_AXES = {"X": (1.0, 0.0, 0.0), "Y": (0.0, 1.0, 0.0), "Z": (0.0, 0.0, 1.0)}
_TURNED = {"X": (0.5**0.5, 0.5**0.5, 0.0), "Y": (-(0.5**0.5), 0.5**0.5, 0.0), "Z": (0.0, 0.0, 1.0)}
_EXAMPLES = "Porto notation such as Z(XX)-Z, X(ZY)Z, Z(X'Y')-Z, Z(Xu)Y, Z(uX)Z, or two vectors such as 1,1,0:0,0,1"


@dataclass(frozen=True, eq=False)
class ScatteringGeometry:
    """A scattering geometry.

    Attributes:
        name: as it was written, tidied.
        incident: (m, 3) polarizations of the incident light, which share its intensity; one, or two of natural light.
        analysed: (n, 3) polarizations of the scattered light that are seen; one, or two without an analyser. Unit
            vectors.
    """

    name: str
    incident: Array
    analysed: Array

    def __post_init__(self) -> None:
        """Refuse what is not a polarization."""
        vectors = np.vstack([np.atleast_2d(self.incident), np.atleast_2d(self.analysed)])
        if vectors.shape[1] != 3 or not np.allclose(np.linalg.norm(vectors, axis=1), 1.0, atol=1e-9):
            raise SpectrumError(f"{self.name}: polarizations must be unit vectors of three numbers")

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read a geometry; see the module's text.

        Raises:
            SpectrumError: the text cannot be read, or a polarization is not perpendicular to the light's direction.
        """
        if ":" in text:
            return cls._from_vectors(text)
        tidy = unicodedata.normalize("NFD", text.strip()).replace("\N{PRIME}", "'").replace("\N{MINUS SIGN}", "-")
        tidy = re.sub(r"\s+", "", tidy)
        match = _PORTO.fullmatch(tidy) or _PORTO.fullmatch(re.sub("[xyz]", lambda m: m[0].upper(), tidy))
        if match is None:
            raise SpectrumError(f"scattering geometry {text!r} cannot be read; write {_EXAMPLES}")
        toward, incident, analyser, away = match.groups()
        incident, analyser = ("u" if letter in "uU*" else letter for letter in (incident, analyser))
        name = f"{_tidy(toward)}({_tidy(incident)}{_tidy(analyser)}){_tidy(away)}"
        return cls(name, _polarizations(name, incident, toward), _polarizations(name, analyser, away))

    @classmethod
    def _from_vectors(cls, text: str) -> Self:
        vectors = []
        for part in text.split(":"):
            try:
                vector = np.array([float(number) for number in part.split(",")])
            except ValueError:
                raise SpectrumError(f"scattering geometry {text!r} cannot be read; write {_EXAMPLES}") from None
            if vector.shape != (3,) or not np.isfinite(vector).all() or not np.linalg.norm(vector) > 0:
                raise SpectrumError(
                    f"scattering geometry {text!r}: a polarization is three numbers, not all zero, got {part!r}"
                )
            vectors.append(vector)
        if len(vectors) != 2:
            raise SpectrumError(f"scattering geometry {text!r}: two polarizations are needed, got {len(vectors)}")
        name = ":".join(",".join(f"{x:g}" for x in v) for v in vectors)
        first, second = (v / np.linalg.norm(v) for v in vectors)
        return cls(name, first[None], second[None])

    @property
    def file_name(self) -> str:
        """The name in letters that every file system takes: ``-Z(X'Y)X`` is ``mZ_XpY_X``."""
        if ":" in self.name:
            return self.name.replace("-", "m").replace(",", "_").replace(":", "__")
        return self.name.replace("-", "m").replace("'", "p").replace("(", "_").replace(")", "_")

    @property
    def is_analysed(self) -> bool:
        """Whether one polarization of the scattered light is seen and not both."""
        return len(self.analysed) == 1

    @cached_property
    def weights(self) -> Array:
        """(21,) so that the intensity is ``weights @ lineshapes``."""
        weights = [[scattering_weights(sent, seen) for seen in self.analysed] for sent in self.incident]
        return np.asarray(np.sum(weights, axis=1).mean(axis=0))

    def intensity(self, lineshapes: Array) -> Array:
        """Return the intensity (..., n) from lineshapes (..., 21, n), in their unit and form."""
        return np.einsum("c,...cn->...n", self.weights, lineshapes)

    def powder(self, invariants: Mapping[RamanKind, Array]) -> Array:
        """Return the average over all orientations of the sample, ``VV cos^2 + VH sin^2`` of the angle of e_i and e_s.

        Without an analyser both polarizations are summed; over those of natural incident light the mean is taken.

        Args:
            invariants: vv and vh in any form, see :func:`mimyria_wf.spectrum.raman_invariants`.
        """
        parallel = float(((self.analysed @ self.incident.T) ** 2).sum(axis=0).mean())
        return np.asarray(invariants["vv"] * parallel + invariants["vh"] * (len(self.analysed) - parallel))


def powder_total(invariants: Mapping[RamanKind, Array]) -> Array:
    """Return VV + VH = (45 a^2 + 7 gamma^2)/45, all that a powder scatters at 90 degrees from polarized light."""
    return np.asarray(invariants["vv"] + invariants["vh"])


def _direction(text: str) -> Array:
    """Return the unit vector of a letter with its minus sign and prime."""
    axes = _TURNED if "'" in text else _AXES
    sign = -1.0 if ("-" in text) != (MACRON in text) else 1.0
    return sign * np.array(axes[re.sub(r"[^XYZ]", "", text)])


def _polarizations(name: str, letter: str, along: str) -> Array:
    """Return the polarization of a letter (1, 3), or for ``u`` two across the direction (2, 3)."""
    direction = _direction(along)
    if letter == "u":
        # any two unit vectors across the direction give the same sum
        return np.asarray(np.linalg.svd(direction[None])[2][1:])
    vector = _direction(letter)
    _require_transverse(name, letter, vector, along, direction)
    return np.asarray(vector[None])


def _tidy(text: str) -> str:
    """Return the direction with a leading minus sign in place of a macron."""
    bare = text.replace(MACRON, "")
    return bare if MACRON not in text else (bare[1:] if bare.startswith("-") else f"-{bare}")


def _require_transverse(name: str, polarization: str, vector: Array, along: str, direction: Array) -> None:
    if abs(vector @ direction) > 1e-9:
        raise SpectrumError(
            f"scattering geometry {name}: light that travels along {_tidy(along)} cannot be polarized along "
            f"{_tidy(polarization)}; a polarization is perpendicular to the direction"
        )
