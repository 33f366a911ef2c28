"""Response tensors in irreducible representations of O(3).

An APT P[displacement, field] is 0e + 1e + 2e: isotropic part, antisymmetric part, symmetric traceless part.
A PGT Q[displacement, field, field] is 1o + 1o + 2o + 3o: the pair of fields is split into its trace (0e) and its
traceless part (2e) before the displacement (1o) is coupled to it, so the first 1o is the gradient of the isotropic
polarizability and the rest the gradient of the anisotropic one. The bases are orthonormal: norms are kept.
"""

import math
from dataclasses import dataclass
from functools import cache
from typing import Any, overload

import numpy as np
import numpy.typing as npt
import torch
from e3nn import o3

from mimyria_wf.errors import ModelError

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Block:
    """One irreducible block: its name, angular momentum, and place among the components."""

    name: str
    l: int  # noqa: E741 - the field's letter
    start: int

    @property
    def stop(self) -> int:
        """Index after the last component."""
        return self.start + 2 * self.l + 1


_BLOCKS: dict[str, tuple[tuple[str, int], ...]] = {
    "apt": (("isotropic", 0), ("antisymmetric", 1), ("symmetric", 2)),
    "pgt": (("trace", 1), ("traceless-1", 1), ("traceless-2", 2), ("traceless-3", 3)),
}
_IRREPS = {"apt": "1x0e+1x1e+1x2e", "pgt": "2x1o+1x2o+1x3o"}


def blocks(target: str) -> tuple[Block, ...]:
    """Return the irreducible blocks of a target in the order of its components."""
    result, start = [], 0
    for name, l in _known(target, _BLOCKS):  # noqa: E741
        result.append(Block(name, l, start))
        start = result[-1].stop
    return tuple(result)


def target_irreps(target: str) -> o3.Irreps:
    """Return the e3nn irreps of a target: 9 components for an APT, 18 for a PGT."""
    return o3.Irreps(_known(target, _IRREPS))


def tensor_shape(target: str) -> tuple[int, ...]:
    """Return (3, 3) for an APT and (3, 3, 3) for a PGT."""
    return {"apt": (3, 3), "pgt": (3, 3, 3)}[target]


@cache
def change_of_basis(target: str) -> torch.Tensor:
    """Return the orthonormal rows that turn a flattened tensor into its components.

    Returns:
        (9, 9) for an APT, (18, 27) for a PGT, float64; e3nn's Cartesian order (x, y, z) and phases.
    """
    f64 = torch.float64
    if target == "apt":
        rows = [math.sqrt(2 * b.l + 1) * o3.wigner_3j(1, 1, b.l, dtype=f64).reshape(9, -1).T for b in blocks(target)]
        return torch.cat(rows)
    trace = torch.eye(3, dtype=f64) / math.sqrt(3)
    traceless = math.sqrt(5) * o3.wigner_3j(1, 1, 2, dtype=f64)
    rows = [torch.einsum("mi,jk->mijk", torch.eye(3, dtype=f64), trace).reshape(3, 27)]
    for block in blocks(target)[1:]:
        coupling = math.sqrt(2 * block.l + 1) * o3.wigner_3j(1, 2, block.l, dtype=f64)
        rows.append(torch.einsum("inm,jkn->mijk", coupling, traceless).reshape(2 * block.l + 1, 27))
    return torch.cat(rows)


@overload
def to_irreps(target: str, tensors: torch.Tensor) -> torch.Tensor: ...
@overload
def to_irreps(target: str, tensors: Array) -> Array: ...
def to_irreps(target: str, tensors: Any) -> Any:
    """Return the irreducible components of Cartesian tensors.

    Args:
        target: ``apt`` or ``pgt``.
        tensors: (..., 3, 3) or (..., 3, 3, 3), torch or numpy. Only the part of a PGT that is symmetric in its fields
            is represented.

    Returns:
        (..., 9) or (..., 18) of the same kind and precision.
    """
    shape = tensor_shape(target)
    if tuple(tensors.shape[-len(shape) :]) != shape:
        raise ModelError(f"{target} tensors must end in shape {shape}, got {tuple(tensors.shape)}")
    flat = tensors.reshape(*tensors.shape[: -len(shape)], -1)
    return flat @ _like(change_of_basis(target).T, tensors)


@overload
def from_irreps(target: str, components: torch.Tensor) -> torch.Tensor: ...
@overload
def from_irreps(target: str, components: Array) -> Array: ...
def from_irreps(target: str, components: Any) -> Any:
    """Return Cartesian tensors from irreducible components, the inverse of :func:`to_irreps`.

    Args:
        target: ``apt`` or ``pgt``.
        components: (..., 9) or (..., 18), torch or numpy.
    """
    flat = components @ _like(change_of_basis(target), components)
    return flat.reshape(*components.shape[:-1], *tensor_shape(target))


def _like(matrix: torch.Tensor, example: Any) -> Any:
    if isinstance(example, torch.Tensor):
        return matrix.to(dtype=example.dtype, device=example.device)
    return matrix.numpy().astype(np.asarray(example).dtype)


def _known(target: str, table: dict[str, Any]) -> Any:
    if target not in table:
        raise ModelError(f"unknown target {target!r}; known are {', '.join(sorted(table))}")
    return table[target]
