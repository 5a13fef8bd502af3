"""The simulated screen: plates with known biology, batch effects and artefacts.

Config, layout and drawing stay in one file because they share the seeds that make a screen reproducible.

Genes of a pathway share a direction in the space of cell traits; each adds a part of its own, each guide its efficacy.
A compound affects a pathway with a dose response. The layout of wells is drawn for each plate.

Faults can be planted that a curation should find: genes that do nothing, wells spoilt throughout, copies of wells.
The plate map says where they are.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from cytolake.screens.simulated.cells import (
    CHANNELS,
    PATHWAYS,
    TRAITS,
    Cells,
    Floats,
    draw_cells,
    draw_field,
    pathway_direction,
)
from cytolake.screens.simulated.imaging import ARTEFACTS, Microscope, draw_microscope, image_field

PLATE_MAP_COLUMNS: Final = (
    "plate",
    "batch",
    "well",
    "perturbation",
    "gene",
    "pathway",
    "guide",
    "efficacy",
    "compound",
    "dose",
    "replicate",
    "control",
    "artefact",
    "artefact_site",
    "artefact_severity",
)

PLANTED_COLUMNS: Final = ("copy_of", "copy_sites", "copy_kind")
"""More columns of the plate map where `copy_share` is above 0: the well copied, `1` or `all`, one of COPY_KINDS."""

COPY_KINDS: Final = ("pixels", "imaged_again")
"""The same pixels, or the same cells in another picture: camera noise and focus are drawn anew."""

_SHAPES: Final = {96: (8, 12), 384: (16, 24)}
# The first number of every seed: which question a generator answers. Changing one changes every screen.
_BATCH, _PLATE, _WELL, _SITE, _GENE, _COMPOUND, _LAYOUT, _PLANTED = range(8)


@dataclass(frozen=True, kw_only=True, slots=True)
class SimulatedScreen:
    """Config of a simulated screen. Equal values give equal bytes."""

    screen: str = "simulated"
    """Name of the screen and of its folder."""
    seed: int = 0
    n_plates: int = 4
    n_batches: int = 2
    """Plates are dealt to batches in turn; a batch shares staining and optics."""
    plate_format: int = 96
    """Wells of the physical plate: 96 or 384. Wells are filled row by row; the rest stays empty."""
    n_pathways: int = 4
    genes_per_pathway: int = 3
    guides_per_gene: int = 2
    replicates: int = 1
    """Wells for each guide on each plate."""
    n_compounds: int = 2
    """Each compound acts on one pathway, the first compound on the first."""
    doses: tuple[float, ...] = (0.1, 1.0, 10.0)
    """Micromolar; half of the effect at 1 on average. Each has `replicates` wells for each compound."""
    n_negative_controls: int = 8
    """Wells of non-targeting guides on each plate."""
    n_positive_controls: int = 2
    sites_per_well: int = 2
    site_size_px: int = 192
    pixel_size_um: float = 1.0
    ome_zarr_version: str = "0.5"
    """`0.5` (Zarr v3) or `0.4` (Zarr v2)."""
    effect_size: float = 6.0
    """Shift of a fully effective perturbation along its direction, in the unit in which `cell_sd` is given: with the
    defaults a probe of the true traits separates 14 perturbations on held-out plates with 0.85 balanced accuracy."""
    gene_share: float = 0.5
    """Share of a gene's effect (by variance) that is its own and not its pathway's, 0..1."""
    cell_sd: float = 0.5
    """Cell-to-cell deviation of each trait; 0 makes all cells of a well alike."""
    well_sd: float = 0.25
    """Well-to-well deviation of each trait that no perturbation explains."""
    batch_effect: float = 1.0
    """Strength of differences in staining and optics between batches and plates; 0 is none, 1 realistic."""
    position_effect: float = 1.0
    """Strength of edge effects: outer wells are dimmer and sparser, with smaller cells; 0 is none."""
    artefact_share: float = 0.06
    """Share of the wells with one spoilt site."""
    n_inactive_genes: int = 0
    """Genes more, in no pathway, whose guides do nothing: `efficacy` 0.00 in the plate map."""
    bad_well_share: float = 0.0
    """Share of the wells with every site spoilt, severity 0.6 or more: `artefact_site` is `all` in the plate map."""
    copy_share: float = 0.0
    """Share of the wells that hold copies of another well of their plate, by turns in the first site and in all sites,
    and of each of COPY_KINDS; see PLANTED_COLUMNS."""

    def __post_init__(self) -> None:
        def check(name: str, is_good: bool, expected: str) -> None:
            if not is_good:
                raise ValueError(f"SimulatedScreen.{name} is {getattr(self, name)!r}; expected {expected}.")

        check("screen", bool(self.screen) and Path(self.screen).name == self.screen, "a folder name")
        check("plate_format", self.plate_format in _SHAPES, "96 or 384")
        check("ome_zarr_version", self.ome_zarr_version in ("0.4", "0.5"), "'0.4' or '0.5'")
        check("n_pathways", 0 <= self.n_pathways <= len(PATHWAYS), f"0 to {len(PATHWAYS)}")
        check(
            "n_compounds",
            self.n_compounds >= 0 and (self.n_pathways > 0 or not self.n_compounds),
            "no compounds where there is no pathway",
        )
        check("seed", self.seed >= 0, "0 or more")
        for name in ("n_plates", "n_batches", "genes_per_pathway", "guides_per_gene", "replicates", "sites_per_well"):
            check(name, getattr(self, name) >= 1, "1 or more")
        check("n_batches", self.n_batches <= self.n_plates, f"no more than n_plates ({self.n_plates})")
        check("site_size_px", self.site_size_px >= 32, "32 or more")
        check("pixel_size_um", self.pixel_size_um > 0, "more than 0")
        for name in (
            "n_negative_controls",
            "n_positive_controls",
            "effect_size",
            "cell_sd",
            "well_sd",
            "batch_effect",
            "position_effect",
            "n_inactive_genes",
        ):
            check(name, getattr(self, name) >= 0, "0 or more")
        for name in ("gene_share", "artefact_share", "bad_well_share", "copy_share"):
            check(name, 0 <= getattr(self, name) <= 1, "0 to 1")
        planted = self.artefact_share + self.bad_well_share + 2 * self.copy_share
        check("copy_share", planted <= 1, "artefact_share + bad_well_share + 2 * copy_share of 1 or less")
        check("doses", all(dose > 0 for dose in self.doses), "doses above 0")
        if not 1 <= self.n_wells <= self.plate_format:
            raise ValueError(
                f"SimulatedScreen: {self.n_wells} wells for each plate, but plate_format has {self.plate_format}. "
                "Lower replicates, guides_per_gene, genes_per_pathway or the controls, or use plate_format=384."
            )

    @property
    def n_wells(self) -> int:
        """Wells used on each plate."""
        guides = (self.n_pathways * self.genes_per_pathway + self.n_inactive_genes) * self.guides_per_gene
        treatments = guides + self.n_compounds * len(self.doses)
        return treatments * self.replicates + self.n_negative_controls + self.n_positive_controls


@dataclass(frozen=True, kw_only=True, slots=True)
class SimulatedWell:
    """One well: its plate-map row, and its ground truth."""

    row: dict[str, str]
    """One value for each of `plate_map_columns`."""
    plate_number: int
    well_number: int
    """0 is A01, along rows."""
    effect: Floats
    """(T,), mean shift of the responding cells in each of `simulated_cells.TRAITS`."""
    edge: float
    """How near the rim: 1 in the outermost wells, 0 from the third ring on."""
    copy_of: SimulatedWell | None = None
    """The well whose cells are in this one's sites, or in its first site; None where the well is no copy."""


def plate_map_columns(config: SimulatedScreen) -> tuple[str, ...]:
    """Columns of the plate map, in order."""
    return PLATE_MAP_COLUMNS + (PLANTED_COLUMNS if config.copy_share else ())


def simulated_wells(config: SimulatedScreen) -> list[SimulatedWell]:
    """Wells of every plate with their labels and effects, by plate and then by well."""
    treatments = _treatments(config)
    n_rows, n_columns = _SHAPES[config.plate_format]
    wells: list[SimulatedWell] = []
    for number in range(config.n_plates):
        rng = _rng(config, _LAYOUT, number)
        of_plate = []
        order = rng.permutation(len(treatments))
        n_spoilt = round(config.artefact_share * len(treatments))
        spoilt = set(rng.choice(len(treatments), n_spoilt, replace=False).tolist())
        first_kind = int(rng.integers(len(ARTEFACTS)))
        for place, treatment in enumerate(order):
            y, x = divmod(place, n_columns)
            ring = min(y, x, n_rows - 1 - y, n_columns - 1 - x)
            labels, effect = treatments[treatment]
            row = dict.fromkeys(plate_map_columns(config), "") | labels
            row |= {
                "plate": plate_name(number),
                "batch": batch_name(config, number),
                "well": f"{chr(65 + y)}{x + 1:02d}",
            }
            if place in spoilt:
                row["artefact"] = ARTEFACTS[(first_kind + sum(p < place for p in spoilt)) % len(ARTEFACTS)]
                row["artefact_site"] = str(1 + int(rng.integers(config.sites_per_well)))
                row["artefact_severity"] = f"{rng.uniform(0.3, 1.0):.2f}"
            of_plate.append(
                SimulatedWell(
                    row=row,
                    plate_number=number,
                    well_number=y * n_columns + x,
                    effect=effect,
                    edge=max(0.0, 1 - ring / 2),
                )
            )
        wells += _plant(config, number, of_plate)
    return wells


def simulated_cells(config: SimulatedScreen, well: SimulatedWell, site: int) -> Cells:
    """Draw the cells of one site, 1 the first: the truth that its pixels were made from."""
    well = _drawn_well(well, site)
    rng = _rng(config, _SITE, well.plate_number, well.well_number, site)
    is_empty = well.row["artefact"] == "empty" and _is_spoilt(well, site)
    well_rng = _rng(config, _WELL, well.plate_number, well.well_number)
    drift = config.well_sd * well_rng.standard_normal(len(TRAITS)).astype(np.float32)
    edge = config.position_effect * well.edge
    drift[TRAITS.index("cell_area")] -= 0.8 * edge
    density = 0.0 if is_empty else max(0.2, 1 - 0.2 * edge)
    return draw_cells(rng, config.site_size_px, well.effect, density=density, well_sd=drift, cell_sd=config.cell_sd)


def simulated_site(config: SimulatedScreen, well: SimulatedWell, site: int) -> NDArray[np.uint16]:
    """Draw and image one site, 1 the first: (5, site_size_px, site_size_px), counts."""
    drawn = _drawn_well(well, site)
    rng = _rng(config, _SITE, drawn.plate_number, drawn.well_number, site, 1)
    stain = draw_field(rng, simulated_cells(config, drawn, site), config.site_size_px)
    if drawn is not well and well.row["copy_kind"] == "imaged_again":
        rng = _rng(config, _SITE, well.plate_number, well.well_number, site, 2)
    is_spoilt = _is_spoilt(well, site)
    return image_field(
        rng,
        stain,
        _microscope(config, well.plate_number),
        brightness=1 - 0.25 * min(config.position_effect, 2) * drawn.edge,
        artefact=well.row["artefact"] if is_spoilt else "",
        severity=float(well.row["artefact_severity"]) if is_spoilt else 0.0,
    )


def plate_name(number: int) -> str:
    return f"P{number + 1:02d}"


def batch_name(config: SimulatedScreen, number: int) -> str:
    return f"B{number % config.n_batches + 1}"


def _rng(config: SimulatedScreen, *question: int) -> np.random.Generator:
    return np.random.default_rng([config.seed, *question])


def _microscope(config: SimulatedScreen, plate_number: int) -> Microscope:
    return draw_microscope(
        _rng(config, _BATCH, plate_number % config.n_batches),
        _rng(config, _PLATE, plate_number),
        len(CHANNELS),
        config.batch_effect,
    )


def _plant(config: SimulatedScreen, plate_number: int, wells: list[SimulatedWell]) -> list[SimulatedWell]:
    """Make some wells of a plate bad and some copies; copies, what they copy, and spoilt wells are different wells."""
    rng = _rng(config, _PLANTED, plate_number)
    n_bad, n_copies = (round(share * len(wells)) for share in (config.bad_well_share, config.copy_share))
    clean = [place for place, well in enumerate(wells) if not well.row["artefact"]]
    places = [clean[i] for i in rng.permutation(len(clean))]
    copies, sources, bad = places[:n_copies], places[n_copies : 2 * n_copies], places[2 * n_copies :][:n_bad]
    planted = list(wells)
    for n, place in enumerate(bad):
        row = wells[place].row | {
            "artefact": ARTEFACTS[(plate_number + n) % len(ARTEFACTS)],
            "artefact_site": "all",
            "artefact_severity": f"{rng.uniform(0.6, 1.0):.2f}",
        }
        planted[place] = dataclasses.replace(wells[place], row=row)
    for n, (place, source) in enumerate(zip(copies, sources, strict=False)):
        row = wells[place].row | {
            "copy_of": wells[source].row["well"],
            "copy_sites": "all" if (plate_number + n) // 2 % 2 else "1",
            "copy_kind": COPY_KINDS[(plate_number + n) % 2],
        }
        planted[place] = dataclasses.replace(wells[place], row=row, copy_of=wells[source])
    return planted


def _drawn_well(well: SimulatedWell, site: int) -> SimulatedWell:
    """The well whose cells a site shows: another one where the site is a copy."""
    if well.copy_of is None or (well.row["copy_sites"] == "1" and site > 1):
        return well
    return well.copy_of


def _is_spoilt(well: SimulatedWell, site: int) -> bool:
    return well.row["artefact_site"] in (str(site), "all")


def _own_direction(rng: np.random.Generator, not_along: Floats) -> Floats:
    """A direction in three random traits, at right angles to another: (T,), unit length."""
    own = np.zeros(len(TRAITS), np.float32)
    own[rng.choice(len(TRAITS) - 1, 3, replace=False)] = rng.choice([-1.0, 1.0], 3)
    own -= not_along * float(own @ not_along)
    return own / np.float32(np.linalg.norm(own))


def _treatments(config: SimulatedScreen) -> list[tuple[dict[str, str], Floats]]:
    """Labels and effect of each well of a plate, before places are drawn."""
    nothing = np.zeros(len(TRAITS), np.float32)
    treatments: list[tuple[dict[str, str], Floats]] = []
    pathways = list(PATHWAYS)[: config.n_pathways]
    shared, own = np.sqrt(1 - config.gene_share), np.sqrt(config.gene_share)
    for p, pathway in enumerate(pathways):
        direction = pathway_direction(pathway)
        for g in range(config.genes_per_pathway):
            rng = _rng(config, _GENE, p, g)
            gene = f"{pathway}-{g + 1}"
            towards = shared * direction + own * _own_direction(rng, direction)
            for guide in range(config.guides_per_gene):
                efficacy = float(rng.uniform(0.7, 1.0))
                effect = (config.effect_size * efficacy * towards).astype(np.float32)
                for replicate in range(config.replicates):
                    labels = {
                        "perturbation": gene,
                        "gene": gene,
                        "pathway": pathway,
                        "guide": f"{gene}_g{guide + 1}",
                        "efficacy": f"{efficacy:.2f}",
                        "replicate": str(replicate + 1),
                    }
                    treatments.append((labels, effect))
    for g in range(config.n_inactive_genes):
        gene = f"unexpressed-{g + 1}"
        treatments += [
            (
                {
                    "perturbation": gene,
                    "gene": gene,
                    "guide": f"{gene}_g{guide + 1}",
                    "efficacy": "0.00",
                    "replicate": str(replicate + 1),
                },
                nothing,
            )
            for guide in range(config.guides_per_gene)
            for replicate in range(config.replicates)
        ]
    for c in range(config.n_compounds):
        rng = _rng(config, _COMPOUND, c)
        pathway = pathways[c % len(pathways)]
        direction = pathway_direction(pathway)
        towards = shared * direction + own * _own_direction(rng, direction)
        half_dose = float(np.exp(0.4 * rng.standard_normal()))
        for dose in config.doses:
            response = dose**1.5 / (dose**1.5 + half_dose**1.5)
            for replicate in range(config.replicates):
                labels = {
                    "perturbation": f"compound-{c + 1}",
                    "pathway": pathway,
                    "efficacy": f"{response:.2f}",
                    "compound": f"compound-{c + 1}",
                    "dose": f"{dose:g}",
                    "replicate": str(replicate + 1),
                }
                treatments.append((labels, (1.2 * config.effect_size * response * towards).astype(np.float32)))
    for control in range(config.n_negative_controls):
        name = f"non-targeting_g{control % 4 + 1}"
        labels = {
            "perturbation": "non-targeting",
            "guide": name,
            "replicate": str(control // 4 + 1),
            "control": "negative",
        }
        treatments.append((labels, nothing))
    strong = nothing.copy()
    for trait, weight in (("nucleus_area", 1.0), ("nucleus_lobes", 0.6), ("micronuclei", 0.6), ("cell_density", -1.0)):
        strong[TRAITS.index(trait)] = weight
    strong *= 1.6 * config.effect_size / np.float32(np.linalg.norm(strong))
    for n in range(config.n_positive_controls):
        labels = {
            "perturbation": "positive-control",
            "gene": "positive-control",
            "guide": "positive-control_g1",
            "efficacy": "1.00",
            "replicate": str(n + 1),
            "control": "positive",
        }
        treatments.append((labels, strong))
    return treatments
