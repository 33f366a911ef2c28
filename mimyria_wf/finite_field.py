"""From forces in homogeneous electric fields to APTs and PGTs.

Everything is carried as explicit Cartesian field vectors; nothing here knows how a program spells its field. The
vectors may come in any order, of any length, along any directions that determine the tensors: a mixed point may be
(h, h, 0) or have total length h, and the reducer needs no word for either.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from mimyria_wf.errors import FieldSetError, IncompleteFieldSet, LabelError
from mimyria_wf.response import Array, ResponseTensors, Target

FIELD_POINTS: dict[str, tuple[int, int, int]] = {
    "0": (0, 0, 0),
    "+x": (1, 0, 0),
    "-x": (-1, 0, 0),
    "+y": (0, 1, 0),
    "-y": (0, -1, 0),
    "+z": (0, 0, 1),
    "-z": (0, 0, -1),
    "+x+y": (1, 1, 0),
    "-x-y": (-1, -1, 0),
    "+x+z": (1, 0, 1),
    "-x-z": (-1, 0, -1),
    "+y+z": (0, 1, 1),
    "-y-z": (0, -1, -1),
}
"""The 13 points of a full set in units of the step; zero field first, so that the others can start from it."""

APT_POINTS: tuple[str, ...] = ("+x", "-x", "+y", "-y", "+z", "-z")
TARGETS: tuple[Target, ...] = ("apt", "pgt")

_COMPONENTS = ((0, 0), (1, 1), (2, 2), (1, 2), (0, 2), (0, 1))
_COMPONENT_POINTS = (("+x", "-x"), ("+y", "-y"), ("+z", "-z"), ("+y+z", "-y-z"), ("+x+z", "-x-z"), ("+x+y", "-x-y"))
_SAME_VECTOR = 1e-6  # of the shortest field: far below any second step, far above printed digits


def check_targets(targets: Sequence[str]) -> tuple[Target, ...]:
    """Return the targets once each in the order apt, pgt; FieldSetError for others or none."""
    unknown = sorted(set(targets) - set(TARGETS))
    if unknown or not targets or isinstance(targets, str):
        raise FieldSetError(f"targets must be a list of 'apt' and 'pgt', got {targets!r}")
    return tuple(target for target in TARGETS if target in targets)


def check_step(step: float) -> float:
    """Return the field step [E_h/(e a0)]; FieldSetError unless it is a positive, weak field."""
    if not np.isfinite(step) or step <= 0:
        raise FieldSetError(f"the field step must be positive, got {step} E_h/(e a0); 5e-4 to 1e-3 is usual")
    if step > 0.05:
        raise FieldSetError(f"a field step of {step} E_h/(e a0) is no perturbation; 5e-4 to 1e-3 is usual")
    return float(step)


def field_vectors(step: float, targets: Sequence[str]) -> dict[str, Array]:
    """Return the field points that the targets need, by name.

    Six axis points for the APT alone; thirteen for the PGT, which hold an APT set.

    Args:
        step: h [E_h/(e a0)]; mixed points are (h, h, 0), of length sqrt(2) h.
        targets: "apt", "pgt" or both.

    Returns:
        name -> (3,) Cartesian vector [E_h/(e a0)], in the order of FIELD_POINTS.
    """
    step = check_step(step)
    names = FIELD_POINTS if "pgt" in check_targets(targets) else APT_POINTS
    return {name: step * np.array(FIELD_POINTS[name], dtype=float) for name in names}


def point_name(vector: Array) -> str:
    """Return "+x+y" for a vector with components of one length along the axes, else its three numbers."""
    vector = np.asarray(vector, dtype=float)
    length = np.abs(vector).max()
    if length == 0:
        return "0"
    signs = [0 if abs(v) < _SAME_VECTOR * length else int(np.sign(v)) for v in vector]
    if all(s == 0 or abs(abs(v) - length) < _SAME_VECTOR * length for s, v in zip(signs, vector)):
        return "".join(("-" if s < 0 else "+") + axis for s, axis in zip(signs, "xyz") if s)
    return f"({', '.join(f'{v:.6g}' for v in vector)})"


@dataclass(frozen=True)
class _Reduction:
    """Linear maps from the forces of a field set to tensor components.

    Attributes:
        zero: index of the zero-field point, or None.
        pairs: (n_pairs, 2) indices of opposite points.
        apt: (3, n_fields) weights [e a0/E_h], or None if undetermined.
        pgt: (6, n_fields) weights in the order xx yy zz yz xz xy [(e a0/E_h)^2], or None if undetermined.
        missing_apt, missing_pgt: names of the points that would determine them.
        n_points: non-zero points in the set.
    """

    zero: int | None
    pairs: tuple[tuple[int, int], ...]
    apt: Array | None
    pgt: Array | None
    missing_apt: tuple[str, ...]
    missing_pgt: tuple[str, ...]
    n_points: int


def _undetermined(design: Array) -> list[int]:
    """Return the columns whose unknowns the equations leave open."""
    if len(design) == 0:
        return list(range(design.shape[1]))
    _, singular, right = np.linalg.svd(design)
    rank = int(np.sum(singular > 1e-6 * singular[0]))
    return [k for k in range(design.shape[1]) if np.abs(right[rank:, k]).max(initial=0.0) > 1e-6]


@lru_cache(maxsize=64)
def _reduction(data: bytes) -> _Reduction:
    vectors = np.frombuffer(data, dtype=float).reshape(-1, 3)
    lengths = np.linalg.norm(vectors, axis=1)
    longest = float(lengths.max(initial=0.0))
    is_zero = lengths <= _SAME_VECTOR * longest
    if longest == 0:
        raise IncompleteFieldSet(f"a field set needs points other than zero: add {', '.join(APT_POINTS)}")
    tolerance = _SAME_VECTOR * float(lengths[~is_zero].min())
    for i, vector in enumerate(vectors):
        same = np.flatnonzero(np.linalg.norm(vectors[:i] - vector, axis=1) < tolerance)
        if len(same) or (is_zero[i] and is_zero[:i].any()):
            raise FieldSetError(
                f"field point {point_name(vector)} is in the set twice, rows {same[0]} and {i}: keep one"
            )
    zero = int(np.flatnonzero(is_zero)[0]) if is_zero.any() else None
    pairs = tuple(
        (i, int(j))
        for i in np.flatnonzero(~is_zero).tolist()
        for j in np.flatnonzero(np.linalg.norm(vectors + vectors[i], axis=1) < tolerance)
        if i < j
    )
    # the scale keeps both problems of order one, whatever the step
    directions = np.array([(vectors[i] - vectors[j]) / (2 * longest) for i, j in pairs]).reshape(-1, 3)
    on_axis = np.sum(np.abs(directions) > _SAME_VECTOR, axis=1) == 1
    # Eq. 21 takes the axis points alone, so an APT does not depend on whether a PGT was asked for as well
    chosen = np.flatnonzero(on_axis) if not _undetermined(directions[on_axis]) else np.arange(len(pairs))
    present = {point_name(v) for v in vectors}

    apt = None
    missing_apt: tuple[str, ...] = ()
    open_axes = _undetermined(directions[chosen])
    if open_axes:
        missing_apt = tuple(n for k in open_axes for n in _COMPONENT_POINTS[k] if n not in present)
    else:
        apt = np.zeros((3, len(vectors)))
        inverse = np.linalg.pinv(directions[chosen]) / (2 * longest)
        for column, k in enumerate(chosen):
            apt[:, pairs[k][0]] += inverse[:, column]
            apt[:, pairs[k][1]] -= inverse[:, column]

    pgt = None
    products = np.array([[d[a] * d[b] * (1 if a == b else 2) for a, b in _COMPONENTS] for d in directions])
    open_components = _undetermined(products.reshape(-1, 6))
    wanted = ["0"] if zero is None else []
    if open_components:
        wanted += [n for k in open_components for n in _COMPONENT_POINTS[k] if n not in present]
    if not open_components and zero is not None:
        pgt = np.zeros((6, len(vectors)))
        inverse = np.linalg.pinv(products) / longest**2
        for column, (i, j) in enumerate(pairs):
            pgt[:, i] += inverse[:, column]
            pgt[:, j] += inverse[:, column]
            pgt[:, zero] -= 2 * inverse[:, column]
    order = list(FIELD_POINTS)
    return _Reduction(
        zero=zero,
        pairs=pairs,
        apt=apt,
        pgt=pgt,
        missing_apt=missing_apt,
        missing_pgt=tuple(sorted(wanted, key=order.index)),
        n_points=int(np.sum(~is_zero)),
    )


def _checked(field_vectors: Array, forces: Array) -> tuple[Array, Array]:
    vectors = np.ascontiguousarray(field_vectors, dtype=float)
    forces = np.asarray(forces, dtype=float)
    if vectors.ndim != 2 or vectors.shape[1] != 3 or not len(vectors):
        raise FieldSetError(f"field vectors must have shape (n_fields, 3), got {vectors.shape}")
    if not np.all(np.isfinite(vectors)):
        raise FieldSetError(f"field vectors must be finite, row {int(np.argwhere(~np.isfinite(vectors))[0, 0])} is not")
    if forces.ndim != 3 or forces.shape[0] != len(vectors) or forces.shape[2] != 3:
        raise FieldSetError(f"forces must have shape ({len(vectors)}, n_atoms, 3) for these fields, got {forces.shape}")
    if not np.all(np.isfinite(forces)):
        point, atom, _ = np.argwhere(~np.isfinite(forces))[0]
        raise LabelError(
            f"forces at field point {point_name(vectors[point])} are not finite (atom {atom}): compute this point again"
        )
    return vectors + 0.0, forces  # + 0.0 turns -0.0 into 0.0, one key in the cache


def response_tensors(
    field_vectors: Array, forces: Array, targets: Sequence[str] | None = None, *, check: bool = True
) -> ResponseTensors:
    """Return APT and PGT of one snapshot from its forces in homogeneous fields.

    Central differences, Eqs. 21-26 of Schienbein (2026), written for any vectors: with opposite points E and -E,
    F(E) - F(-E) = 2 P.E gives the APT (axis points alone where they suffice), F(E) + F(-E) - 2 F(0) = E.Q.E the PGT.
    For (h, 0, 0), (0, h, 0) and (h, h, 0) the latter is Q_xy = (D - S_x - S_y)/2; for a mixed point of total length h
    it is D - (S_x + S_y)/2. More points than unknowns are fitted by least squares; a point without its opposite is
    not used.

    Args:
        field_vectors: (n_fields, 3) Cartesian field vectors, in any order [E_h/(e a0)].
        forces: (n_fields, n_atoms, 3) forces in those fields [E_h/a0].
        targets: what must come out. None: the APT, and the PGT if the set was meant for it (more than six non-zero
            points). The APT of a PGT set comes for free and is returned too.
        check: refuse forces that contradict the vectors, see :meth:`FieldDiagnostics.check`.

    Returns:
        apt (n_atoms, displacement, field) [e]; pgt (n_atoms, displacement, field, field) [e^2 a0/E_h] or None.

    Raises:
        IncompleteFieldSet: names the field points that are missing.
        FieldSetError: a point is in the set twice, shapes do not fit, forces contradict the vectors.
        LabelError: forces are not finite.
    """
    vectors, forces = _checked(field_vectors, forces)
    reduction = _reduction(vectors.tobytes())
    wanted = (*TARGETS[: 1 + (reduction.n_points > 6)],) if targets is None else check_targets(targets)
    n_given = len(vectors)
    if reduction.apt is None and ("apt" in wanted or reduction.pgt is None):
        names = ", ".join(reduction.missing_apt)
        raise IncompleteFieldSet(f"the APT needs field points that are missing: {names} ({n_given} points given)")
    if reduction.pgt is None and "pgt" in wanted:
        names = ", ".join(reduction.missing_pgt)
        raise IncompleteFieldSet(f"the PGT needs field points that are missing: {names} ({n_given} points given)")
    if check:
        _diagnostics(reduction, vectors, forces, charge=None).check()
    apt = None if reduction.apt is None else np.einsum("fk,kid->idf", reduction.apt, forces)
    return ResponseTensors(apt=apt, pgt=None if reduction.pgt is None else _pgt(reduction.pgt, forces))


def _pgt(weights: Array, forces: Array) -> Array:
    components = np.einsum("ck,kid->idc", weights, forces)
    pgt = np.empty((*components.shape[:2], 3, 3))
    for k, (a, b) in enumerate(_COMPONENTS):
        pgt[..., a, b] = pgt[..., b, a] = components[..., k]
    return pgt


@dataclass(frozen=True)
class FieldDiagnostics:
    """What a field set tells about its own quality, at no cost.

    Attributes:
        apt_noise: rms difference between P.E/|E| of the mixed points' odd part and of the axis points [e]; SCF noise
            plus the third-order term. None without mixed points.
        field_scale: by mixed pair "+x+y", the length of the field felt there over the length of its vector, from the
            odd part; 1 if the backend applied the vectors as given, sqrt(2) or 1/sqrt(2) if it normalised a direction
            that was not meant to be, or the reverse.
        curvature: rms of F(E) + F(-E) - 2 F(0) over the axis points [E_h/a0], the signal behind the PGT; it should
            stand well above the engine's force noise. None without zero field.
        net_force: largest component of sum_i F_i(E) - F_i(0) - Q_tot E over the points [E_h/a0], the sum rules in one
            number; (F(E) - F(-E))/2 in place of F(E) - F(0) without zero field. None if no charge was given.
    """

    apt_noise: float | None
    field_scale: dict[str, float]
    curvature: float | None
    net_force: float | None

    def check(self, tolerance: float = 0.1) -> None:
        """Raise FieldSetError if mixed points felt another field than their vectors say.

        The two readings of a mixed point differ by sqrt(2) = 1.41; real sets lie within 1e-3 of 1.
        """
        for name, scale in self.field_scale.items():
            if abs(scale - 1) > tolerance:
                raise FieldSetError(
                    f"the forces at {name} and its opposite follow a field {scale:.3f} times the vector given: "
                    "(h, h, 0) and total length h are mixed up, pass the vectors that the engine applied"
                )


def diagnostics(field_vectors: Array, forces: Array, charge: float | None = 0.0) -> FieldDiagnostics:
    """Return the free checks of a field set.

    Args:
        field_vectors: (n_fields, 3) [E_h/(e a0)].
        forces: (n_fields, n_atoms, 3) [E_h/a0].
        charge: total charge [e] for the net-force check; None leaves it out.
    """
    vectors, forces = _checked(field_vectors, forces)
    return _diagnostics(_reduction(vectors.tobytes()), vectors, forces, charge)


def _diagnostics(reduction: _Reduction, vectors: Array, forces: Array, charge: float | None) -> FieldDiagnostics:
    field_scale, differences, curvatures, net = {}, [], [], []
    for i, j in reduction.pairs:
        vector, odd = vectors[i], 0.5 * (forces[i] - forces[j])
        length = float(np.linalg.norm(vector))
        if np.sum(np.abs(vector) > _SAME_VECTOR * length) == 1:
            if reduction.zero is not None:
                curvatures.append(forces[i] + forces[j] - 2 * forces[reduction.zero])
        elif reduction.apt is not None:
            expected = np.einsum("fk,kid,f->id", reduction.apt, forces, vector)
            differences.append((odd - expected) / length)
            size = float(np.sum(expected**2))
            if size > (1e-3 * length) ** 2:  # an APT of 1e-3 e or less measures nothing
                field_scale[point_name(vector)] = float(np.sum(odd * expected)) / size
        if charge is not None:
            both = (i, j) if reduction.zero is not None else (i,)
            for k in both:
                change = odd if reduction.zero is None else forces[k] - forces[reduction.zero]
                net.append(np.abs(change.sum(axis=0) - charge * vectors[k]).max())
    return FieldDiagnostics(
        apt_noise=float(np.sqrt(np.mean(np.square(differences)))) if differences else None,
        field_scale=field_scale,
        curvature=float(np.sqrt(np.mean(np.square(curvatures)))) if curvatures else None,
        net_force=float(max(net)) if net else None,
    )


@dataclass(frozen=True)
class NoiseErrors:
    """Errors of the tensors of one snapshot by the scatter of its own forces; errors of the even part are not in them.

    Attributes:
        force_noise: standard deviation of one force component at one point [E_h/a0].
        n_redundant: points beyond those that a quadratic model needs; each gives 3 n_atoms readings of the noise.
        apt: (3,) error of an APT element, by field [e]; None if the points do not determine the APT.
        pgt: (3, 3) error of a PGT element, by pair of fields [e^2 a0/E_h]; None if they do not determine the PGT.
    """

    force_noise: float
    n_redundant: int
    apt: Array | None
    pgt: Array | None


def noise_errors(field_vectors: Array, forces: Array) -> NoiseErrors | None:
    """Estimate the errors of APT and PGT from what a field set says twice.

    Thirteen points determine F(0), P and Q, ten numbers, three times over in the odd part: (F(E) - F(-E))/2 at a mixed
    point must be P.E of the axis points. What remains after a least-squares fit of F(0) + P.E + E.Q.E/2, taken as
    independent noise of one size, goes through the weights of :func:`response_tensors`: sigma/(sqrt(2) h) for an APT
    element, sqrt(6) sigma/h^2 for Q_xx and sqrt(5/2) sigma/h^2 for Q_xy. The remainder also holds the third order of
    the field, so that a step that is too long shows as well.

    Nothing is said twice about the even part, seven points with seven unknowns, so that its errors are not in here: an
    error of F(0), which enters every PGT element as -2 F(0)/h^2 and is the largest where the point without field is
    the worst converged; the fourth order of the field; a response that has not come to its end, the same share of it
    missing at all points. The PGT's figure is a lower bound. Trying a tighter SCF threshold and another step
    (:mod:`mimyria_wf.qualification`) sees these.

    Args:
        field_vectors: (n_fields, 3) Cartesian field vectors, in any order [E_h/(e a0)].
        forces: (n_fields, n_atoms, 3) forces in those fields [E_h/a0].

    Returns:
        The errors, None where no point is redundant (the six axis points of an APT alone).
    """
    vectors, forces = _checked(field_vectors, forces)
    reduction = _reduction(vectors.tobytes())
    scaled = vectors / np.linalg.norm(vectors, axis=1).max()
    products = np.array([scaled[:, a] * scaled[:, b] for a, b in _COMPONENTS]).T
    design = np.concatenate([np.ones((len(vectors), 1)), scaled, products], axis=1)
    left, singular, _ = np.linalg.svd(design, full_matrices=False)
    space = left[:, singular > 1e-6 * singular[0]]
    n_redundant = len(vectors) - space.shape[1]
    if n_redundant == 0:
        return None
    # differences from the first point keep the digits: forces are 1e6 times their noise
    changes = (forces - forces[0]).reshape(len(forces), -1)
    rest = changes - space @ (space.T @ changes)
    noise = float(np.sqrt(np.sum(np.square(rest)) / (n_redundant * rest.shape[1])))
    pgt = None
    if reduction.pgt is not None:
        pgt = np.empty((3, 3))
        for (a, b), weights in zip(_COMPONENTS, reduction.pgt):
            pgt[a, b] = pgt[b, a] = noise * np.linalg.norm(weights)
    apt = None if reduction.apt is None else noise * np.linalg.norm(reduction.apt, axis=1)
    return NoiseErrors(force_noise=noise, n_redundant=n_redundant, apt=apt, pgt=pgt)
