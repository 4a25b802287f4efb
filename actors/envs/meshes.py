"""Coarser visual meshes for small pictures.

A MetaWorld scene has 68,000 mesh triangles, drawn on about 4,000 pixels. On a software renderer the vertices, not
the pixels, cost the time, so vertices closer than a fraction of a pixel are merged before the upload.
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np


def with_coarse_meshes(model: Any, cell_m: float) -> Any:
    """Copies a model and merges all mesh vertices that share a grid cell.

    The copy is for uploading to the renderer only: body and mesh frames, normals and texture coordinates keep
    their place, and the model that is simulated is not touched.

    Args:
        model: mujoco.MjModel.
        cell_m: Edge of a grid cell in metres.

    Returns:
        A mujoco.MjModel with fewer faces (`mesh_facenum` is lower; the tail of each face array is unused).
    """
    coarse = copy.copy(model)
    for mesh in range(model.nmesh):
        _merge_vertices(coarse, mesh, cell_m)
    return coarse


def _merge_vertices(model: Any, mesh: int, cell_m: float) -> None:
    """Merges the vertices of one mesh in place and drops the faces that collapse or repeat."""
    first_face, num_faces = model.mesh_faceadr[mesh], model.mesh_facenum[mesh]
    first_vertex, num_vertices = model.mesh_vertadr[mesh], model.mesh_vertnum[mesh]
    vertices = model.mesh_vert[first_vertex : first_vertex + num_vertices].astype(np.float64)
    faces = model.mesh_face[first_face : first_face + num_faces].copy()

    cells = np.round(vertices / cell_m).astype(np.int64)
    _, first_of_cluster, cluster = np.unique(cells, axis=0, return_index=True, return_inverse=True)
    cluster = cluster.reshape(-1)
    counts = np.bincount(cluster)
    centres = np.stack([np.bincount(cluster, weights=axis) / counts for axis in vertices.T], axis=1)

    kept, clustered = _distinct_faces(cluster[faces])
    model.mesh_vert[first_vertex + first_of_cluster] = centres
    target = slice(first_face, first_face + len(kept))
    model.mesh_face[target] = first_of_cluster[clustered]
    model.mesh_facenormal[target] = model.mesh_facenormal[first_face + kept]
    model.mesh_facetexcoord[target] = model.mesh_facetexcoord[first_face + kept]
    model.mesh_facenum[mesh] = len(kept)


def _distinct_faces(faces: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Drops faces with a repeated corner, and all but the first of equal faces.

    Args:
        faces: (F, 3) int, corners by number.

    Returns:
        Indices of the faces that stay (K,), and these faces (K, 3).
    """
    a, b, c = faces.T
    solid = np.flatnonzero((a != b) & (b != c) & (a != c))
    # Rotating the smallest corner to the front keeps the winding, so front and back faces stay distinct.
    turn = (np.argmin(faces[solid], axis=1)[:, None] + np.arange(3)) % 3
    canonical = np.take_along_axis(faces[solid], turn, axis=1)
    _, first = np.unique(canonical, axis=0, return_index=True)
    kept = solid[np.sort(first)]
    return kept, faces[kept]
