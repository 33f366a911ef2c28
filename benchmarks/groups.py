"""Cost of groups and relations that change with time: 64 waters, 192 atoms.

Run with ``python benchmarks/groups.py``; prints milliseconds a frame.
"""

import time
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mimyria_wf.groups import Follower, ResolvedGroups, parse_group_scheme
from mimyria_wf.related import RelatedCorrelator
from mimyria_wf.topology import find_topology

Array = NDArray[Any]
N_WATERS, N_FRAMES, MAX_LAG = 64, 500, 500
SHELL = {"of": {"all": ["tagged", {"species": "O"}]}, "by": {"species": "O"}}
GROUPS: dict[str, Any] = {
    "tagged": {"molecule_of": {"index": 0}},
    "first_shell": {"within": {**SHELL, "distance": 3.5}},
    "second_shell": {"within": {**SHELL, "distance": 5.5}},
}
CROWDED = {"donors": {"within": {"of": {"species": "O"}, "by": {"species": "O"}, "distance": 2.7}}}
RELATIONS = ["self", "hydrogen bonded", {"neighbours": {"distance": 4.5, "by": {"species": "O"}}}]


def waters() -> tuple[Array, Array, Array]:
    """Return positions of waters that wander in a triclinic box, their atomic numbers and the box."""
    rng = np.random.default_rng(0)
    box = np.array([[12.4, 0, 0], [2.0, 12.3, 0], [-1.5, 1.0, 12.5]])
    places = np.stack(np.meshgrid(*[np.arange(4) / 4] * 3), axis=-1).reshape(-1, 3) @ box
    water = np.array([[0, 0, 0], [0.76, 0.59, 0], [-0.76, 0.59, 0]])
    wander = np.cumsum(rng.normal(scale=0.02, size=(N_FRAMES, N_WATERS, 1, 3)), axis=0)
    positions = (places[:, None] + water + wander).reshape(N_FRAMES, 3 * N_WATERS, 3)
    return positions, np.tile([8, 1, 1], N_WATERS), box


def milliseconds(work: Callable[[], object]) -> float:
    """Return processor time, the best of three, per frame."""
    times = []
    for _ in range(3):
        began = time.process_time()
        work()
        times.append(time.process_time() - began)
    return 1000 * min(times) / N_FRAMES


def main() -> None:
    """Print the table."""
    positions, numbers, box = waters()
    pbc = np.ones(3, dtype=bool)
    topology = find_topology(positions[0], numbers, box, pbc)
    assert topology.n_molecules == N_WATERS
    names = (*GROUPS, "rest")

    def groups(scheme: dict[str, Any]) -> ResolvedGroups:
        return ResolvedGroups(parse_group_scheme(scheme), (*scheme["groups"], "rest"), topologies=(topology,))

    def follow(scheme: dict[str, Any]) -> Callable[[], object]:
        known = groups(scheme)
        return lambda: Follower(known, numbers, box, pbc, topology).follow(positions)

    schemes: dict[str, dict[str, Any]] = {
        "two shells of one water": {"groups": GROUPS},
        "waters near any other water": {"groups": CROWDED},
        "two shells, molecules found anew": {"groups": GROUPS, "connectivity": {"frames": "every"}},
        "two shells, relations of molecules": {"groups": GROUPS, "relations": RELATIONS, "units": "molecules"},
        "two shells, relations of atoms": {"groups": GROUPS, "relations": RELATIONS},
        "the same, every 10th frame": {"groups": GROUPS, "relations": RELATIONS, "every": 10},
    }
    for name, scheme in schemes.items():
        print(f"{name:45s} {milliseconds(follow(scheme)):8.3f} ms a frame")
    values = np.random.default_rng(1).normal(size=(N_FRAMES, len(numbers), 9))
    for units in ("molecules", "atoms"):
        known = groups({"groups": GROUPS, "relations": RELATIONS, "units": units})
        follower = Follower(known, numbers, box, pbc, topology)
        member, pairs = follower.follow(positions)

        def correlate(member: Array = member, pairs: Any = pairs, follower: Follower = follower) -> None:
            correlator = RelatedCorrelator(
                MAX_LAG,
                n_groups=len(names),
                n_relations=len(follower.relations),
                n_units=follower.n_units,
                blocks=(3, 6),
            )
            for start in range(0, 4 * N_FRAMES, N_FRAMES):
                del start
                correlator.add(values, member, pairs)

        print(f"{'correlations by relation of ' + units:45s} {milliseconds(correlate) / 4:8.3f} ms a frame")


if __name__ == "__main__":
    main()
