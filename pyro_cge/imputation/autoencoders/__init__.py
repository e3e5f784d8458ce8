"""Autoencoders as associative memories, and across modalities."""
