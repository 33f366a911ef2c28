"""Potentials of torch-sim: energies and forces of many structures in one call, on one device.

A potential is named as an ASE calculator is, by the import path of its class or of a function that builds it and by its
arguments, and must give a ``torch_sim.models.interface.ModelInterface``: torch-sim's adapters of MACE, SevenNet, ORB,
MatterSim, metatomic and graph-pes, NequIP's own adapter, or a class of the user's. :func:`mace` reads a MACE file,
which torch-sim's adapter does not. :class:`TorchSimCalculator` makes an ASE calculator of any of them, so that the
canonical run before the NVE runs has the same potential.
"""

from __future__ import annotations

import copy
import importlib
import inspect
import json
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import ase
import numpy as np
from ase.calculators.calculator import Calculator, all_changes

from mimyria_wf.dynamics import build, load_factory
from mimyria_wf.errors import EngineError
from mimyria_wf.frames import Array

if TYPE_CHECKING:
    import torch

FORCE_TOLERANCE = 0.1
"""Largest relative difference between a force and the slope of the energy along it."""
PRECISIONS = ("float64", "float32")


def import_torch_sim(module: str = "torch_sim") -> Any:
    """Return a module of torch-sim.

    Raises:
        EngineError: it is not installed; names the extra.
    """
    try:
        with warnings.catch_warnings():
            # of what torch-sim 0.3 itself calls: torch.jit.script and the name vesin.torch
            warnings.simplefilter("ignore", DeprecationWarning)
            return importlib.import_module(module)
    except ImportError as error:
        raise EngineError(
            f"the engine torch-sim needs the package torch-sim-atomistic ({error}): "
            "python -m pip install 'mimyria_wf[torch-sim]'"
        ) from error


def engine_name(calculator: Mapping[str, Any], dtype: str) -> str:
    """Return what identifies a potential in metadata and in the decision whether a run is the same."""
    arguments = json.dumps(calculator.get("arguments") or {}, sort_keys=True)
    return f"torch-sim {calculator['import']} {arguments} {dtype}"


def make_model(
    import_path: str, arguments: Mapping[str, Any] | None = None, device: str = "cpu", dtype: str = "float64"
) -> Any:
    """Build a potential of torch-sim.

    ``device``, ``dtype``, ``compute_forces=True`` and ``compute_stress=False`` are handed over where the class or
    function has parameters of these names and the arguments leave them out.

    Args:
        import_path: ``package.module:Class``, ``package.module:function`` or ``package.module:Class.method``.
        arguments: keyword arguments of the call; in place of tensors numbers and lists of numbers may be given.
        device: "cpu", "cuda", "cuda:1", ...
        dtype: of the potential, "float64" or "float32".

    Raises:
        EngineError: torch-sim or the potential is missing, cannot be built, or computes elsewhere or otherwise than
            it was told to.
    """
    import torch

    interface = import_torch_sim("torch_sim.models.interface").ModelInterface
    place = _device(device)
    if dtype not in PRECISIONS:
        raise EngineError(f"the precision of the potential must be one of {', '.join(PRECISIONS)}, got {dtype!r}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        factory = load_factory(import_path)
        parameters = inspect.signature(factory).parameters
        offered = {
            "device": place,
            "dtype": getattr(torch, dtype),
            "compute_forces": True,
            "compute_stress": False,
        }
        known = {key: value for key, value in offered.items() if key in parameters}
        model = build(import_path, factory, {**known, **_as_tensors(arguments or {}, factory, place, dtype)})
    if not isinstance(model, interface):
        raise EngineError(
            f"calculator {import_path}: {type(model).__name__} is not a potential of torch-sim "
            "(torch_sim.models.interface.ModelInterface); the engine ase takes ASE calculators"
        )
    if torch.device(model.device).type != place.type:
        raise EngineError(f"calculator {import_path}: computes on {model.device}, not on {device}")
    if model.dtype != getattr(torch, dtype):
        raise EngineError(
            f"calculator {import_path}: computes in {str(model.dtype).removeprefix('torch.')}, not in {dtype}; "
            "ask for the precision that it has"
        )
    return model


def _device(name: str) -> torch.device:
    import torch

    try:
        place = torch.device(name)
    except RuntimeError as error:
        raise EngineError(f"device {name!r} is none that torch knows; expected cpu or cuda") from error
    if place.type == "cuda" and not torch.cuda.is_available():
        raise EngineError(f"device {name}: torch {torch.__version__} sees no GPU here; take cpu")
    return place


def _as_tensors(arguments: Mapping[str, Any], factory: Any, place: torch.device, dtype: str) -> dict[str, Any]:
    """Return the arguments, with tensors where the annotation asks for nothing else."""
    import torch

    wanted = {
        name
        for name, parameter in inspect.signature(factory).parameters.items()
        if parameter.annotation in (torch.Tensor, "torch.Tensor", "Tensor")
    }
    return {
        key: torch.as_tensor(value, dtype=getattr(torch, dtype), device=place) if key in wanted else value
        for key, value in arguments.items()
    }


def mace(model: str, *, device: torch.device, dtype: torch.dtype, enable_cueq: bool = False) -> Any:
    """Return the potential of a MACE file, as ``mace_run_train`` writes it, through torch-sim's adapter.

    Args:
        model: the file. It holds a pickle, which runs code when it is read: take files that you trust.
        device: of the potential.
        dtype: of the potential.
        enable_cueq: use cuEquivariance.

    Raises:
        EngineError: MACE is not installed, or the file is none of its own.
    """
    import torch

    try:
        importlib.import_module("mace")
    except ImportError as error:
        raise EngineError(
            f"a MACE file needs the package mace-torch ({error}); it asks for an e3nn older than that of the response "
            "networks: give it an environment, and an AiiDA code, of its own"
        ) from error
    try:
        network = torch.load(model, map_location=device, weights_only=False)
    except Exception as error:  # unpickling raises whatever it likes
        raise EngineError(f"{model}: not a readable MACE file ({type(error).__name__}: {error})") from error
    if not hasattr(network, "r_max") or not hasattr(network, "atomic_numbers"):
        raise EngineError(f"{model}: holds a {type(network).__name__}, not a MACE network; give the .model file")
    adapter = import_torch_sim("torch_sim.models.mace").MaceModel
    return adapter(network, device=device, dtype=dtype, compute_stress=False, enable_cueq=enable_cueq)


def make_state(structures: Sequence[ase.Atoms], device: torch.device, dtype: torch.dtype) -> Any:
    """Return structures as one torch-sim state; all periodic in all directions, or none in any.

    torch-sim keeps cell vectors in columns and knows one kind of boundary for all structures.

    Raises:
        EngineError: periodic in some directions only, or some of the structures only.
    """
    import torch

    partly = [i for i, atoms in enumerate(structures) if atoms.pbc.any() and not atoms.pbc.all()]
    if partly:
        raise EngineError(
            f"the engine torch-sim takes structures that are periodic in all directions or in none, structure "
            f"{partly[0]} is periodic along {structures[partly[0]].pbc.tolist()}; take the engine ase"
        )
    if len({bool(atoms.pbc.all()) for atoms in structures}) > 1:
        raise EngineError("the engine torch-sim takes structures that are all periodic or all not, got both")
    counts = torch.tensor([len(atoms) for atoms in structures], device=device)

    def tensor(values: Array) -> torch.Tensor:
        return torch.as_tensor(np.ascontiguousarray(values), device=device)

    return import_torch_sim().SimState(
        positions=tensor(np.concatenate([atoms.positions for atoms in structures])).to(dtype),
        masses=tensor(np.concatenate([atoms.get_masses() for atoms in structures])).to(dtype),
        cell=tensor(np.stack([atoms.cell[:].T for atoms in structures])).to(dtype),
        pbc=bool(structures[0].pbc.all()),
        atomic_numbers=tensor(np.concatenate([atoms.numbers for atoms in structures])).to(torch.int),
        system_idx=torch.repeat_interleave(torch.arange(len(structures), device=device), counts),
    )


class Potential:
    """A potential of torch-sim for states in float64, whatever its own precision, that checks what it gives.

    Args:
        model: see :func:`make_model`.
    """

    def __init__(self, model: Any) -> None:
        self.model = model
        self.device, self.dtype = model.device, model.dtype

    def __call__(self, state: Any) -> dict[str, torch.Tensor]:
        """Return energy (n_structures,) [eV] and forces (n_atoms, 3) [eV/A], in the precision of the state.

        Raises:
            EngineError: the potential fails, or energies or forces are missing or of the wrong shape.
        """
        dtype = state.positions.dtype
        own = copy.copy(state)
        own.positions = state.positions.to(self.dtype).detach()  # MACE asks for the gradients of the very tensor
        own.masses, own.cell = state.masses.to(self.dtype), state.cell.to(self.dtype)
        found = self._found(own)
        result = {}
        for key, shape in (("energy", (len(state.cell),)), ("forces", (len(state.positions), 3))):
            if key not in found:
                raise EngineError(f"{type(self.model).__name__} gives no {key}, only {', '.join(sorted(found))}")
            if tuple(found[key].shape) != shape:
                raise EngineError(f"{type(self.model).__name__} gives {key} {tuple(found[key].shape)}, not {shape}")
            result[key] = found[key].detach().to(dtype)
        return result

    def check(self, state: Any) -> dict[str, torch.Tensor]:
        """Return energy and forces, once it is sure that the forces are the slope of the energy.

        (E(r - d) - E(r + d))/2 against F d, with d along F. NVE dynamics with other forces conserves no energy, and
        its spectra are those of nothing. The potentials that come with torch-sim 0.3 itself (Lennard-Jones, Morse,
        soft spheres) count every pair of their forces twice.

        Raises:
            EngineError: forces that are none, with the factor between the two.
        """
        import torch

        found = self(state)
        energy, forces = found["energy"], found["forces"]
        finite = torch.isfinite(energy).all() & torch.isfinite(forces).all()
        largest = forces.norm(dim=1).max() if bool(finite) else forces.new_zeros(())
        if float(largest) == 0:  # what is not finite is the engine's to name
            return found
        # A; the energy of a float32 potential is known to 1e-7 of a total that may be 1e5 eV
        step = forces * ((1e-3 if self.dtype == torch.float64 else 1e-2) / largest)
        expected = torch.zeros_like(energy).index_add(0, state.system_idx, (forces * step).sum(1))
        moved = [state.clone(), state.clone()]
        moved[0].positions = state.positions - step
        moved[1].positions = state.positions + step
        slope = (self(moved[0])["energy"] - self(moved[1])["energy"]) / 2
        noise = 1e-6 + 100 * torch.finfo(self.dtype).eps * energy.abs()
        if self.dtype != torch.float64:
            noise = noise + 1e-3  # third derivatives, over the longer way
        worst = int(((slope - expected).abs() - FORCE_TOLERANCE * expected - noise).argmax())
        if float((slope - expected).abs()[worst]) > float(FORCE_TOLERANCE * expected[worst] + noise[worst]):
            raise EngineError(
                f"{type(self.model).__name__}: its forces are {float(expected[worst] / slope[worst]):.2f} times the "
                "slope of its energy; NVE dynamics needs a potential whose forces are the gradient of its energy"
            )
        return found

    def _found(self, state: Any) -> Mapping[str, torch.Tensor]:
        import torch

        try:
            found = self.model(state)
        except torch.OutOfMemoryError as error:
            raise EngineError(
                f"{type(self.model).__name__}: {len(state.cell)} structures of {len(state.positions)} atoms in all "
                f"are too much for the memory of {self.device}; take a smaller batch size"
            ) from error
        except Exception as error:  # any code may sit behind a potential; TorchScript's last line says what it was
            lines = str(error).strip().splitlines()
            raise EngineError(
                f"{type(self.model).__name__} failed ({type(error).__name__}: {lines[-1] if lines else 'no message'})"
            ) from error
        if not isinstance(found, Mapping):
            raise EngineError(f"{type(self.model).__name__} gives {type(found).__name__}, not energy and forces")
        return found


class TorchSimCalculator(Calculator):
    """A potential of torch-sim as ASE calculator, for canonical runs and whatever else ASE does.

    Args:
        model: see :func:`make_model`.
    """

    implemented_properties = ["energy", "forces"]

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.potential = Potential(model)
        self._is_checked = False

    def calculate(
        self,
        atoms: ase.Atoms | None = None,
        properties: Sequence[str] = ("energy",),
        system_changes: Sequence[str] = all_changes,
    ) -> None:
        """Compute energy and forces."""
        import torch

        super().calculate(atoms, list(properties), list(system_changes))
        assert self.atoms is not None
        state = make_state([self.atoms], self.potential.device, torch.float64)
        found = self.potential(state) if self._is_checked else self.potential.check(state)
        self._is_checked = True
        self.results = {"energy": float(found["energy"][0]), "forces": found["forces"].cpu().numpy()}
