"""Which intervention to do next."""
