"""Neural tangent kernels: completion, Gaussian-process regression, deep classifiers."""
