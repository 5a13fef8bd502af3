# %% [markdown]
# # Hit list with q-values
#
# Score the perturbations of a screen with two tests, correct for their number, and write the hits as CSV.

# %%
import json
import os

import pandas as pd
from typer.testing import CliRunner

import cytolake.catalog
from cytolake.cli.main import app
from cytolake.tracking import TrackingConfig, resolve_alias

root = os.environ.get("CYTOLAKE_ROOT", "cytolake_data")
catalog = cytolake.catalog.open(root)
champion = resolve_alias(TrackingConfig().at(catalog.root)).representation_id

# %% [markdown]
# Run the benchmarks `consistency` and `magnitude` on the promoted representation, aligned on the negative controls of
# each plate. This is the command `cytolake score`; a second run finds the scores and computes nothing.

# %%
options = ["--set", "tasks=[consistency, magnitude]", "--set", "alignments=[pca_cs]", "--root", root]
finished = CliRunner().invoke(app, ["score", champion, *options])
assert finished.exit_code == 0, finished.output

# %% [markdown]
# Values, p-values and q-values of each perturbation are in the column `details`, as JSON. The table has every score
# that was ever computed, so the condition names the alignment too; of equal scores computed again, the newest counts.

# %%
where = "representation_id = ? and metric = 'share_discovered' and alignment = 'pca_cs'"
rows = catalog.table("scores", where=where, parameters=[champion]).sort_by("scored_at").to_pylist()
hits = pd.DataFrame()
for row in rows:
    details = json.loads(row["details"])
    test = row["benchmark"].removeprefix("perturbation_")
    for name, key in ((test, "values"), (f"p_{test}", "p_values"), (f"q_{test}", "q_values")):
        hits[name] = pd.Series(details[key])
print(hits.round(4).sort_values("q_magnitude").to_string())

# %% [markdown]
# A hit passes both tests: its replicates agree (consistency), and they differ from the controls (magnitude). Join the
# plate map for genes and compounds.

# %%
is_hit = (hits["q_consistency"] <= 0.05) & (hits["q_magnitude"] <= 0.05)
labels = catalog.to_pandas("wells", columns=["perturbation", "gene", "compound", "pathway"]).drop_duplicates(
    "perturbation"
)
table = hits.assign(is_hit=is_hit).join(labels.set_index("perturbation")).sort_values("magnitude", ascending=False)
table.to_csv("hits.csv", index_label="perturbation")
print(f"{is_hit.sum()} of {len(hits)} perturbations are hits; hits.csv has all of them")
