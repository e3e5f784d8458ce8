"""Inner loops in numba, imported where they are used: scores, searches over orders, sums over parent sets, separations."""
