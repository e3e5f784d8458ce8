"""Many members of one kind as one program: ``fit_ensemble`` and what its members say together."""
