"""From a disease signature to drugs and targets: the COVID-19 study of Belyaeva et al. (2021) again, and known answers."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

FOLDER = Path(__file__).parent
sys.path.insert(0, str(FOLDER.parent))

from contract import finish, options  # noqa: E402


def main() -> None:
    parser = options(__doc__, seeds=10, data=False)
    parser.add_argument(
        "--data",
        type=Path,
        default=None,
        help="folder with covid/, bio/ and l1000_level5_gps24.npz (README); none: known answers only",
    )
    parser.add_argument(
        "--interactome", type=Path, default=None, help="TSV of protein1, protein2, cost: all of iRefIndex"
    )
    arguments = parser.parse_args()

    import known

    table = known.rows(3 if arguments.quick else arguments.seeds)
    print("\nfour genes drive a simulated disease; AUC of finding them among 30 drug targets, mean of seeds")
    print(table.mean().round(3).to_string())
    figures = {
        "known_auc": round(float(table["network, downstream"].mean()), 3),
        "known_auc_sd": round(float(table["network, downstream"].std()), 3),
        "known_auc_excess": round(float(table["network, excess"].mean()), 3),
        "known_auc_tree": round(float(table["tree, downstream"].mean()), 3),
        "known_auc_degree": round(float(table["degree"].mean()), 3),
        "known_auc_own_change": round(float(table["own change"].mean()), 3),
        "known_cpu_s": round(float(table["cpu_s"].mean()), 2),
        "covid_ripk1_rank": None,
        "covid_overlap": None,
        "covid_stability": None,
    }
    if arguments.data is not None:
        import covid

        figures |= covid.figures(arguments.data, arguments.interactome, draws=50 if arguments.quick else 200)
    finish(arguments.out or FOLDER / "results", clean(figures), arguments)


def clean(value):
    """Numbers as JSON has them."""
    if isinstance(value, dict):
        return {name: clean(v) for name, v in value.items()}
    return value.item() if isinstance(value, np.generic) else value


if __name__ == "__main__":
    main()
