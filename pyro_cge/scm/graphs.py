"""Random latent graphs, as networkx DAGs over nodes ``0 … d−1`` with edges from parent to child."""

from __future__ import annotations

import itertools

import networkx as nx
import numpy as np
import torch
from torch import Tensor

from ..errors import ConfigError


def empty(d: int) -> nx.DiGraph:
    """``d`` independent latents."""
    graph = nx.DiGraph()
    graph.add_nodes_from(range(_count(d)))
    return graph


def chain(d: int) -> nx.DiGraph:
    """``0 → 1 → … → d−1``."""
    return nx.path_graph(_count(d), create_using=nx.DiGraph)


def growing_network(d: int, rng: np.random.Generator) -> nx.DiGraph:
    """A tree grown node by node: each new node picks one earlier node as its parent, uniformly.

    The "growing network" of the paper (section 6.4), edges pointing from old to new.
    """
    graph = empty(d)
    graph.add_edges_from((int(rng.integers(j)), j) for j in range(1, d))
    return graph


def union_of_growing_networks(d: int, rng: np.random.Generator, n_networks: int = 2) -> nx.DiGraph:
    """Edge union of ``n_networks`` growing networks over the same nodes: up to ``n_networks`` parents each."""
    return nx.compose_all([growing_network(d, rng) for _ in range(n_networks)])


def hierarchical(layer_sizes: list[int], p: float, rng: np.random.Generator) -> nx.DiGraph:
    """Layers of latents; each node takes each node of the previous layer as a parent with probability ``p``.

    A node left without a parent gets one at random, so that depth is what ``layer_sizes`` says.
    """
    if not layer_sizes or min(layer_sizes) < 1:
        raise ConfigError(f"every layer needs at least one node, got layer_sizes={layer_sizes}")
    graph = empty(sum(layer_sizes))
    start = 0
    for above, below in itertools.pairwise(layer_sizes):
        for child in range(start + above, start + above + below):
            parents = start + np.flatnonzero(rng.random(above) < p)
            if not len(parents):
                parents = start + rng.integers(above, size=1)
            graph.add_edges_from((int(i), child) for i in parents)
        start += above
    return graph


def erdos_renyi(d: int, rng: np.random.Generator, expected_edges: float | None = None) -> nx.DiGraph:
    """Each pair is joined independently, along a random order; ``expected_edges`` in all (default ``d``)."""
    pairs = _count(d) * (d - 1) / 2
    p = min(1.0, (d if expected_edges is None else expected_edges) / max(pairs, 1))
    upper = np.triu(rng.random((d, d)) < p, k=1)
    order = rng.permutation(d)
    graph = empty(d)
    graph.add_edges_from((int(order[i]), int(order[j])) for i, j in np.argwhere(upper))
    return graph


def scale_free(d: int, rng: np.random.Generator, m: int = 1) -> nx.DiGraph:
    """Barabási–Albert preferential attachment with ``m`` edges a new node, oriented from old to new."""
    if not 1 <= m < _count(d):
        raise ConfigError(f"scale_free needs 1 <= m < d, got m={m} and d={d}")
    undirected = nx.barabasi_albert_graph(d, m, seed=int(rng.integers(2**31)))
    graph = empty(d)
    graph.add_edges_from((min(i, j), max(i, j)) for i, j in undirected.edges)
    return graph


def layered(depth: int, width: int) -> nx.DiGraph:
    """``depth`` layers of ``width`` nodes, every node a child of all nodes of all earlier layers.

    Every DAG of at most that depth and width is a subgraph (paper, section 4.9).
    """
    graph = empty(depth * width)
    graph.add_edges_from((i, j) for j in graph for i in range((j // width) * width))
    return graph


def adjacency(graph: nx.DiGraph) -> Tensor:
    """``A [d, d]`` with ``A[i, j] = 1`` where ``i → j``, nodes in the order ``0 … d−1``."""
    return torch.from_numpy(nx.to_numpy_array(graph, nodelist=sorted(graph), weight=None, dtype=np.float32))


def layers(graph: nx.DiGraph) -> list[list[int]]:
    """Topological generations: parents of a node always lie in earlier lists.

    Raises
    ------
    ConfigError
        If the graph has a cycle (it is named), or its nodes are not ``0 … d−1``.
    """
    if set(graph) != set(range(len(graph))):
        raise ConfigError(f"latent graph nodes must be 0 … d−1, got {sorted(graph, key=str)[:5]} …")
    if not nx.is_directed_acyclic_graph(graph):
        raise ConfigError(f"latent graph must be acyclic, but has the cycle {nx.find_cycle(graph)}")
    return [sorted(generation) for generation in nx.topological_generations(graph)]


def _count(d: int) -> int:
    if d < 1:
        raise ConfigError(f"a latent graph needs at least one node, got d={d}")
    return d
