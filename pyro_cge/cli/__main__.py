"""``python -m pyro_cge.cli``."""

from . import main

main()
