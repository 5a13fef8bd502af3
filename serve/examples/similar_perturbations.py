"""Lists the perturbations most similar to one, by a search of a running service.

    similar_perturbations.py TP53 --where "plate <> 'P1'"

$CYTOLAKE_URL is the address of the service (http://127.0.0.1:8000 when unset), $CYTOLAKE_API_KEY its key.
"""

from __future__ import annotations

import argparse
import os
from collections import defaultdict

from rich.console import Console
from rich.table import Table

from cytolake.client import Client

CROPS = 1000
"""Number of most similar crops that are counted."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("perturbation", help="as in the column `perturbation` of the table wells")
    parser.add_argument("--where", default="", help="SQL condition on the crops to search in")
    arguments = parser.parse_args()
    url, key = os.environ.get("CYTOLAKE_URL", "http://127.0.0.1:8000"), os.environ.get("CYTOLAKE_API_KEY", "")
    with Client(url, key) as service:
        answer = service.search(perturbation=arguments.perturbation, k=CROPS, where=arguments.where)
    similarities: dict[str, list[float]] = defaultdict(list)
    wells: dict[str, set[tuple[str, str]]] = defaultdict(set)
    for hit in answer["hits"]:
        name = hit["perturbation"] or "(none)"
        similarities[name].append(hit["similarity"])
        wells[name].add((hit["plate"], hit["well"]))
    table = Table("perturbation", "crops", "wells", "best cosine", box=None)
    for name in sorted(similarities, key=lambda name: -len(similarities[name]))[:20]:
        crops = similarities[name]
        table.add_row(name, str(len(crops)), str(len(wells[name])), f"{max(crops):.3f}")
    console = Console()
    console.print(f"The {len(answer['hits']):,} crops most like {arguments.perturbation}, of {answer['n_crops']:,}:")
    console.print(table)
    expected = answer["predicted_performance"]
    if expected is not None:
        console.print(
            f"Expected average precision of a search by {arguments.perturbation}: {expected['average_precision']:.2f} "
            f"[{expected['low']:.2f}, {expected['high']:.2f}]"
        )


if __name__ == "__main__":
    main()
