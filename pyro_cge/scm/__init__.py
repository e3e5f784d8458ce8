"""Structural causal models: graphs, mechanisms, noise laws, intervention handlers."""
