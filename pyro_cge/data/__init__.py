"""Expression data: readers, filters, features, splits and standardisation, all around ``EnvironmentData``.

Import from the modules (``pyro_cge.data.l1000``, ``.assemble``, ``.splits``, ...): this file stays empty so that
reading a table does not load torch, RDKit or anndata.
"""
