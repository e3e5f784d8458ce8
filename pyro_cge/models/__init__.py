"""The parts of a cell model: priors, decoders, and the model that joins them."""
