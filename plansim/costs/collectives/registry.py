"""The table of collective algorithms, and which of them each library has."""

from __future__ import annotations

from plansim.costs.collectives.curve import CollectiveAlgorithm
from plansim.costs.collectives.gloo import Gloo
from plansim.costs.collectives.hierarchical import HalvingDoubling, Hierarchical
from plansim.costs.collectives.in_network import Nvls, NvlsTree, Sharp
from plansim.costs.collectives.pairwise import Pairwise, PointToPoint
from plansim.costs.collectives.parameter_server import ParameterServer
from plansim.costs.collectives.ring import Ring
from plansim.costs.collectives.torus import Torus
from plansim.costs.collectives.tree import Tree

COLLECTIVE_ALGORITHMS: dict[str, CollectiveAlgorithm] = {
    "ring": Ring(),
    "tree": Tree(),
    "nvls": Nvls(),
    "nvls_tree": NvlsTree(),
    "sharp": Sharp(),
    "hierarchical": Hierarchical(),
    "halving_doubling": HalvingDoubling(),
    "torus": Torus(),
    "pairwise": Pairwise(),
    "point_to_point": PointToPoint(),
    "parameter_server": ParameterServer(),
    "gloo": Gloo(),
}
"""Name -> algorithm; a new entry is tested as soon as it stands here."""

BACKEND_ALGORITHMS: dict[str, tuple[str, ...]] = {
    "nccl": ("ring", "tree", "nvls", "nvls_tree", "sharp", "torus", "pairwise", "point_to_point"),
    "rccl": ("ring", "tree", "torus", "pairwise", "point_to_point"),
    "ici": ("torus", "ring", "pairwise", "point_to_point"),
    "gloo": ("gloo",),
}
"""Collective library -> the algorithms it chooses from."""
