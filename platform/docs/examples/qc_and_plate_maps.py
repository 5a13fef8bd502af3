# %% [markdown]
# # QC and plate maps
#
# Which rules fail, on which plates, and where on the plate? Draws the number of failed verdicts and the cell count of
# each well as plate maps.

# %%
import os

import matplotlib.pyplot as plt
import numpy as np

import cytolake.catalog

catalog = cytolake.catalog.open(os.environ.get("CYTOLAKE_ROOT", "cytolake_data"))

# %% [markdown]
# Every set of rules (profile) has verdicts of its own, under its `qc_id`: count those of the newest alone.

# %%
failed = catalog.sql(
    """
    select rule, level, count(*) judged, count(*) filter (not is_pass) failed, count(*) filter (reason <> '') not_judged
    from qc_verdicts where qc_id = (select arg_max(qc_id, judged_at) from qc_verdicts)
    group by all order by failed desc
    """
)
print(failed.to_pandas().head(12).to_string(index=False))

# %% [markdown]
# One value for each well: failed verdicts of its sites, and nuclei in a site (objects in the channel DNA). A verdict
# has the value and the threshold that it was compared with.

# %%
wells = catalog.sql(
    """
    with verdicts as (
        select sites.well_id, count(*) filter (not is_pass) as failed
        from qc_verdicts join sites using (site_id)
        where level = 'site' and qc_id = (select arg_max(qc_id, judged_at) from qc_verdicts) group by all
    ), counts as (
        select well_id, avg(object_count) as cells
        from qc_metrics join sites using (site_id) where channel = 'DNA' group by all
    )
    select plate, "row", "column", coalesce(failed, 0) failed, cells
    from wells left join verdicts using (well_id) left join counts using (well_id) order by plate
    """
).to_pandas()

# %%
plates = sorted(wells["plate"].unique())
shape = (wells["row"].max() + 1, wells["column"].max() + 1)
figure, axes = plt.subplots(2, len(plates), figsize=(3 * len(plates), 4.5), layout="constrained", squeeze=False)
for column, plate in enumerate(plates):
    of_plate = wells[wells["plate"] == plate]
    for axis, value, colours in zip(axes[:, column], ["failed", "cells"], ["magma_r", "viridis"], strict=True):
        grid = np.full(shape, np.nan)
        grid[of_plate["row"], of_plate["column"]] = of_plate[value]
        image = axis.imshow(grid, cmap=colours, vmin=0, vmax=max(1, wells[value].max()))
        axis.set(
            title=f"{plate}: {value}",
            xticks=range(shape[1]),
            xticklabels=range(1, shape[1] + 1),
            yticks=range(shape[0]),
            yticklabels=[chr(ord("A") + row) for row in range(shape[0])],
        )
        axis.tick_params(labelsize=6)
for axes_of_value in axes:
    figure.colorbar(axes_of_value[-1].images[0], ax=list(axes_of_value), shrink=0.8)
figure.savefig("plate_maps.png", dpi=150)

# %% [markdown]
# ![Failed verdicts and cell counts of the demo's plates](../pictures/plate_maps.png)
#
# Sites that fail most rules, worst first: look at these on the page `report/qc.html`, or label them with
# `cytolake qc label`.

# %%
worst = catalog.sql(
    """
    select sites.plate, sites.well, sites.site, list(distinct rule order by rule) as rules
    from qc_verdicts join sites using (site_id)
    where not is_pass and level = 'site' and qc_id = (select arg_max(qc_id, judged_at) from qc_verdicts)
    group by all order by len(rules) desc, plate, well, site limit 5
    """
)
print(worst.to_pandas().to_string(index=False))
