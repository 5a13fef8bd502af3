"""Cells of the simulated screen: traits, effects of perturbations on traits, and the drawing of one field of cells.

A cell is a vector of traits, each 0 for the typical untreated cell and 1 for one typical cell-to-cell deviation.
Traits are shapes and arrangements (how elongated, how many nucleoli, where the mitochondria sit). The amount of stain
in a cell does not depend on them, so the effect of a perturbation is in the morphology and hardly in the mean
intensity. The drawing stays in one file because its organelles share the geometry of a cell's body.

Letters in names of arrays: N cells, T traits, Y and X pixels of a cell's window, P points of an organelle.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

Floats = NDArray[Any]  # float32; numpy's own stubs lose the precision in mixed arithmetic

CHANNELS: Final = ("DNA", "ER", "RNA", "AGP", "Mito")
"""Stains of the simulated screen, in pixel order, by their names in catalog/channels.yaml."""

TRAITS: Final = (
    "nucleus_area",
    "nucleus_elongation",
    "nucleus_lobes",
    "micronuclei",
    "chromatin_clumping",
    "chromatin_rim",
    "nucleoli_count",
    "er_spread",
    "er_coarseness",
    "actin_alignment",
    "actin_cortex",
    "golgi_dispersal",
    "golgi_distance",
    "mito_length",
    "mito_spread",
    "mito_polarity",
    "cell_area",
    "cell_elongation",
    "cell_protrusions",
    "cell_alignment",
    "cell_clustering",
    "cell_density",
)

PATHWAYS: Final[dict[str, dict[str, float]]] = {
    "cytokinesis": {"nucleus_lobes": 1.0, "nucleus_area": 0.8, "cell_area": 0.6, "micronuclei": 0.6},
    "actin_assembly": {"cell_alignment": 0.8, "cell_elongation": 0.8, "actin_alignment": 0.8, "actin_cortex": -0.6},
    "adhesion": {"cell_clustering": 1.0, "cell_area": -0.7, "actin_cortex": 0.7, "cell_protrusions": 0.4},
    "secretion": {"er_spread": -1.0, "golgi_dispersal": 0.8, "mito_spread": -0.7, "nucleus_area": -0.5},
    "mito_fission": {"mito_length": -1.0, "mito_spread": 0.5, "mito_polarity": -0.5, "er_spread": 0.3},
    "ribosome_biogenesis": {"nucleoli_count": 1.0, "chromatin_clumping": -0.4, "er_coarseness": 0.6},
    "chromatin_compaction": {"chromatin_clumping": 1.0, "chromatin_rim": 0.7, "nucleus_area": -0.5},
    "er_stress": {"er_coarseness": 1.0, "er_spread": -0.7, "mito_spread": -0.6},
    "microtubule_transport": {"mito_spread": -1.0, "golgi_distance": 0.8, "mito_polarity": 0.7, "er_spread": -0.4},
    "nuclear_envelope": {"nucleus_elongation": 0.9, "chromatin_rim": -0.8, "nucleus_lobes": 0.6},
    "mito_biogenesis": {"mito_length": 1.0, "mito_polarity": -0.6, "nucleoli_count": 0.4},
    "planar_polarity": {"golgi_distance": -0.7, "mito_polarity": 1.0, "cell_alignment": 0.7, "cell_elongation": 0.5},
}
"""Shared direction of each pathway in trait space, before scaling to unit length. Names are of processes, not genes."""

CELL_RADIUS_PX: Final = 27.0
NUCLEUS_RADIUS_PX: Final = 11.0
CELL_SPACING_PX: Final = 35.0
"""Smallest distance between neighbouring nuclei at typical density."""

_WINDOW_PX: Final = 100  # a cell of twice the typical radius still fits
_MARGIN_PX: Final = _WINDOW_PX // 2
_TEXTURE_SCALES_PX: Final = (1.1, 1.7, 2.7, 4.2)
_TEXTURE_EDGE_PX: Final = 192


@dataclass(frozen=True, kw_only=True, slots=True)
class Cells:
    """The cells of one field of view: the truth behind its pixels."""

    traits: Floats
    """(N, T), one column for each of `TRAITS`."""
    y: Floats
    """(N,), nucleus centre from the top edge of the field, pixels; cells beyond the edges reach into the field."""
    x: Floats
    """(N,), nucleus centre from the left edge of the field, pixels."""


def pathway_direction(name: str) -> Floats:
    """Return a pathway's direction in trait space: (T,), unit length."""
    direction = np.zeros(len(TRAITS), np.float32)
    for trait, weight in PATHWAYS[name].items():
        direction[TRAITS.index(trait)] = weight
    return direction / np.float32(np.linalg.norm(direction))


def draw_cells(
    rng: np.random.Generator,
    size_px: int,
    effect: Floats,
    *,
    penetrance: float = 0.9,
    density: float = 1.0,
    well_sd: Floats | float = 0.0,
    cell_sd: float = 1.0,
) -> Cells:
    """Place cells in a square field and draw the traits of each.

    Args:
        rng: Source of every random number.
        size_px: Edge of the field.
        effect: (T,), mean shift of the responding cells, in cell-to-cell deviations.
        penetrance: Share of cells that respond, 0..1.
        density: Cells relative to the typical number; 0 leaves the field empty.
        well_sd: Shift shared by all cells of the field, in cell-to-cell deviations: (T,) or 0.
        cell_sd: Cell-to-cell deviation.
    """
    crowding = density * float(np.exp(0.12 * effect[TRAITS.index("cell_density")]))
    y, x = _place(rng, size_px, crowding, float(_between(effect[TRAITS.index("cell_clustering")], -0.4, 1.0)))
    responds = rng.random(len(y), np.float32) < penetrance
    traits_NT = rng.standard_normal((len(y), len(TRAITS)), np.float32) * np.float32(cell_sd)
    traits_NT += np.where(responds[:, None], effect[None], np.float32(0)) + np.asarray(well_sd, np.float32)
    return Cells(traits=traits_NT.astype(np.float32), y=y, x=x)


def draw_field(rng: np.random.Generator, cells: Cells, size_px: int) -> Floats:
    """Draw a field of cells as a perfect microscope would see it.

    Every cell holds the same amount of each stain up to cell-to-cell variation, whatever its traits.

    Args:
        rng: Source of the details that are no traits: where each fibre, fragment and clump lies.
        cells: From `draw_cells`.
        size_px: Edge of the field.

    Returns:
        (5, size_px, size_px), stain for each pixel in the order of `CHANNELS`; a typical cell's interior is about 1.
    """
    edge = size_px + 2 * _MARGIN_PX
    if not len(cells.y):
        return np.zeros((len(CHANNELS), size_px, size_px), np.float32)
    row = np.floor(cells.y).astype(np.intp) + _MARGIN_PX
    column = np.floor(cells.x).astype(np.intp) + _MARGIN_PX
    body = _Bodies(rng, cells)
    textures = _textures(rng)
    amount_CN = np.exp(
        0.25 * rng.standard_normal((1, len(row)), np.float32) + 0.2 * rng.standard_normal((5, len(row)), np.float32)
    )

    dna_NYX, rna_NYX = _nucleus(rng, body, textures)
    windows_CNYX = np.stack(
        [
            _share(dna_NYX, 650.0 * amount_CN[0] * np.exp2(0.5 * rng.random(len(row), np.float32))),
            _share(_endoplasmic_reticulum(rng, body, textures), 2000.0 * amount_CN[1]),
            _share(rna_NYX, 1300.0 * amount_CN[2]),
            _share(_cortex(body), 2000.0 * amount_CN[3] * body.cortex_share),
            _share(body.inside_NYX * body.outside_nucleus_NYX, 300.0 * amount_CN[4]),
        ]
    )
    canvas = np.zeros((len(CHANNELS), edge, edge), np.float32)
    half = _WINDOW_PX // 2
    for n, (top, left) in enumerate(zip(row - half, column - half, strict=True)):
        y0, x0 = max(top, 0), max(left, 0)
        y1, x1 = min(top + _WINDOW_PX, edge), min(left + _WINDOW_PX, edge)
        canvas[:, y0:y1, x0:x1] += windows_CNYX[:, n, y0 - top : y1 - top, x0 - left : x1 - left]

    # Thin things are points first (a tenth of the cost of drawing each), blurred together once.
    dot = _splat(edge, row, column, *_micronuclei(rng, body), total=amount_CN[0] * 45.0, keep_counts=True)
    fibre = _splat(
        edge, row, column, *_actin_fibres(rng, body), total=2000.0 * amount_CN[3] * (0.72 - body.cortex_share)
    )
    golgi = _splat(edge, row, column, *_golgi(rng, body), total=2000.0 * amount_CN[3] * 0.28)
    mito = _splat(edge, row, column, *_mitochondria(rng, body), total=1700.0 * amount_CN[4])
    canvas[0] += ndimage.gaussian_filter(dot, 1.9)
    canvas[3] += ndimage.gaussian_filter(fibre, 1.0) + ndimage.gaussian_filter(golgi, 1.7)
    canvas[4] += ndimage.gaussian_filter(mito, 1.1)
    return np.ascontiguousarray(canvas[:, _MARGIN_PX:-_MARGIN_PX, _MARGIN_PX:-_MARGIN_PX])


class _Bodies:
    """Outlines of N cells and their nuclei, on one window for each cell, centred on the nucleus."""

    def __init__(self, rng: np.random.Generator, cells: Cells) -> None:
        n = len(cells.y)
        self.n = n
        self.trait = {name: cells.traits[:, t] for t, name in enumerate(TRAITS)}
        trait = self.trait
        self.radius = CELL_RADIUS_PX * np.exp(0.12 * np.clip(trait["cell_area"], -4, 4))
        self.stretch = np.exp(_between(trait["cell_elongation"], 0.0, 1.1))
        disorder = np.exp(_between(-trait["cell_alignment"], np.log(0.12), np.log(3.0)))
        self.angle = (rng.uniform(0, np.pi) + disorder * rng.standard_normal(n)).astype(np.float32)
        self.cortex_share = _between(trait["actin_cortex"], 0.05, 0.65)
        self.golgi_angle = self.angle + rng.choice([0.0, np.pi], n) + 0.4 * rng.standard_normal(n)
        half = _WINDOW_PX // 2
        axis = np.arange(_WINDOW_PX, dtype=np.float32) - half
        dy = axis[None, :, None] - (cells.y % 1)[:, None, None].astype(np.float32)
        dx = axis[None, None, :] - (cells.x % 1)[:, None, None].astype(np.float32)

        # The nucleus sits a little off the cell's middle, on its long axis.
        shift = (0.12 * self.radius * rng.standard_normal(n)).astype(np.float32)
        self.centre_y, self.centre_x = shift * np.sin(self.angle), shift * np.cos(self.angle)
        z, r = _rotated(dx - _wide(self.centre_x), dy - _wide(self.centre_y), self.angle, self.stretch)
        bumps = _between(trait["cell_protrusions"], 0.02, 0.30)
        phase = rng.uniform(0, 2 * np.pi, (3, n))
        z2 = z * z
        z3 = z2 * z
        boundary = (
            1 + 0.05 * _wave(z2, phase[0]) + _wide(bumps) * (0.5 * _wave(z3, phase[1]) + _wave(z2 * z3, phase[2]))
        )
        self.depth_NYX = _wide(self.radius) * boundary - r
        """Distance inside the cell's outline, pixels; negative outside."""
        self.inside_NYX = np.clip(self.depth_NYX / 1.5 + 0.5, 0, 1)

        self.nucleus_radius = NUCLEUS_RADIUS_PX * np.exp(0.12 * np.clip(trait["nucleus_area"], -4, 4))
        nucleus_stretch = np.exp(_between(trait["nucleus_elongation"], 0.0, 0.7))
        nucleus_angle = self.angle + 0.3 * rng.standard_normal(n)
        z, r = _rotated(dx, dy, nucleus_angle, nucleus_stretch)
        lobes = _between(trait["nucleus_lobes"], 0.0, 0.45)
        z2 = z * z
        three = rng.random(n) < 0.5
        phase_n = rng.uniform(0, 2 * np.pi, n)
        wave = np.where(_wide(three), _wave(z2 * z, phase_n), _wave(z2, phase_n))
        self.nucleus_depth_NYX = _wide(self.nucleus_radius) * (1 + _wide(lobes) * wave) - r
        self.nucleus_NYX = np.clip(self.nucleus_depth_NYX / 1.2 + 0.5, 0, 1)
        self.outside_nucleus_NYX = 1 - self.nucleus_NYX

    def at(self, field_NYX: Floats, y_NP: Floats, x_NP: Floats) -> Floats:
        """Read a window array at points given relative to each nucleus; 0 beyond the window."""
        half = _WINDOW_PX // 2
        row = np.rint(y_NP).astype(np.intp) + half
        column = np.rint(x_NP).astype(np.intp) + half
        seen = (row >= 0) & (row < _WINDOW_PX) & (column >= 0) & (column < _WINDOW_PX)
        np.clip(row, 0, _WINDOW_PX - 1, out=row)
        np.clip(column, 0, _WINDOW_PX - 1, out=column)
        values: Floats = field_NYX[np.arange(self.n)[:, None], row, column]
        return values * seen


def _place(rng: np.random.Generator, size_px: int, crowding: float, clustering: float) -> tuple[Floats, Floats]:
    """Throw darts: nuclei no nearer than the spacing, over the field and a margin around it.

    With `clustering` above 0 cells come closer and leave a share of the field free: about as many cells, in islands.
    """
    low, high = -_MARGIN_PX + 4.0, size_px + _MARGIN_PX - 4.0
    clustering = max(clustering, 0.0)
    free = 0.5 * clustering
    # 0.08: islands have rims, where a dart has fewer neighbours; measured to keep the number of cells within 5 %.
    spacing = CELL_SPACING_PX * (1 + 0.08 * clustering) * np.sqrt((1 - free) / max(crowding, 1e-6))
    n_darts = 0 if crowding <= 0 else int(3 * ((high - low) / spacing) ** 2)
    darts = rng.uniform(low, high, (n_darts, 2))
    # Islands: the highest parts of a smooth random surface, a sum of plane waves of about four cells' length.
    wave_K2 = rng.standard_normal((8, 2)) * 2 * np.pi / (5.0 * CELL_SPACING_PX)
    phase_K = rng.uniform(0, 2 * np.pi, 8)
    corners = rng.uniform(low, high, (256, 2))
    height = np.cos(darts @ wave_K2.T + phase_K).sum(axis=1)
    sea = np.quantile(np.cos(corners @ wave_K2.T + phase_K).sum(axis=1), free)
    need2 = (spacing * rng.uniform(0.75, 1.2, n_darts)) ** 2
    kept = np.empty((n_darts, 2))
    n = 0
    for dart, need in zip(darts[height >= sea], need2, strict=False):
        if n == 0 or np.min(np.sum((kept[:n] - dart) ** 2, axis=1)) > need:
            kept[n] = dart
            n += 1
    return kept[:n, 0].astype(np.float32), kept[:n, 1].astype(np.float32)


def _between(trait_N: Floats, low: float, high: float) -> Floats:
    """Map a trait to a physical range, steepest at 0: -3 is near `low`, 3 near `high`."""
    return (low + (high - low) / (1 + np.exp(-0.9 * trait_N))).astype(np.float32)


def _wide(value_N: NDArray[np.generic]) -> NDArray[np.generic]:
    return value_N[:, None, None]


def _rotated(dx: Floats, dy: Floats, angle_N: Floats, stretch_N: Floats) -> tuple[NDArray[np.complex64], Floats]:
    """Turn into the axes of an ellipse: unit complex direction and radius, both (N, Y, X)."""
    cos, sin = _wide(np.cos(angle_N).astype(np.float32)), _wide(np.sin(angle_N).astype(np.float32))
    root = np.sqrt(stretch_N).astype(np.float32)
    u = (dx * cos + dy * sin) / _wide(root)
    v = (dy * cos - dx * sin) * _wide(root)
    r = np.sqrt(u * u + v * v)
    return ((u + 1j * v) / np.maximum(r, 1e-3)).astype(np.complex64), r


def _wave(power_NYX: NDArray[np.complex64], phase_N: NDArray[np.float64]) -> Floats:
    """cos(k theta + phase), from the k-th power of the unit direction."""
    cos, sin = np.cos(phase_N).astype(np.float32), np.sin(phase_N).astype(np.float32)
    return power_NYX.real * _wide(cos) - power_NYX.imag * _wide(sin)


def _share(weight_NYX: Floats, total_N: Floats) -> Floats:
    """Scale each cell's window to hold `total_N`."""
    return weight_NYX * _wide((total_N / np.maximum(weight_NYX.sum(axis=(1, 2)), 1e-3)).astype(np.float32))


def _textures(rng: np.random.Generator) -> Floats:
    """Unit-variance noise at each of the texture scales: (scales, edge, edge)."""
    white = rng.standard_normal((_TEXTURE_EDGE_PX, _TEXTURE_EDGE_PX), np.float32)
    bank = np.stack([ndimage.gaussian_filter(white, scale, mode="wrap") for scale in _TEXTURE_SCALES_PX])
    return bank / bank.std(axis=(1, 2), keepdims=True)


def _texture_windows(rng: np.random.Generator, bank: Floats, scale_N: Floats) -> Floats:
    """One random piece of texture for each cell, blended between two scales: (N, Y, X), about unit variance.

    `scale_N` runs over 0..1, finest to coarsest.
    """
    n = len(scale_N)
    span = np.arange(_WINDOW_PX)
    rows = (rng.integers(0, _TEXTURE_EDGE_PX, n)[:, None] + span) % _TEXTURE_EDGE_PX
    columns = (rng.integers(0, _TEXTURE_EDGE_PX, n)[:, None] + span) % _TEXTURE_EDGE_PX
    place = np.clip(scale_N, 0, 1) * (len(bank) - 1.001)
    lower = place.astype(np.intp)
    part = _wide((place - lower).astype(np.float32))
    index = rows[:, :, None], columns[:, None, :]
    return bank[(_wide(lower), *index)] * (1 - part) + bank[(_wide(lower + 1), *index)] * part


def _nucleus(rng: np.random.Generator, body: _Bodies, textures: Floats) -> tuple[Floats, Floats]:
    """Chromatin, and RNA: nucleoli of one total area however many they are, over a diffuse cytoplasm."""
    n = body.n
    most = 7
    count = np.clip(np.rint(_between(body.trait["nucleoli_count"], 0.6, 7.4)), 1, most)
    radius = body.nucleus_radius * 0.46 / np.sqrt(count)
    far = body.nucleus_radius * 0.66 * np.sqrt(rng.uniform(0.05, 1, (most, n)))
    turn = (
        rng.uniform(0, 2 * np.pi, n)
        + (np.arange(most)[:, None] / count + 0.08 * rng.standard_normal((most, n))) * 2 * np.pi
    )
    cy, cx = (far * np.sin(turn)).astype(np.float32), (far * np.cos(turn)).astype(np.float32)
    half, reach = _WINDOW_PX // 2, 24
    inner = slice(half - reach, half + reach)
    axis = np.arange(-reach, reach, dtype=np.float32)
    nucleoli = np.zeros_like(body.nucleus_NYX)
    for k in range(most):
        distance = np.sqrt((axis[None, :, None] - _wide(cy[k])) ** 2 + (axis[None, None, :] - _wide(cx[k])) ** 2)
        disc = np.clip(_wide(radius.astype(np.float32)) - distance + 0.5, 0, 1) * _wide(count > k)
        np.maximum(nucleoli[:, inner, inner], disc, out=nucleoli[:, inner, inner])
    nucleoli *= body.nucleus_NYX

    clumping = _wide(_between(body.trait["chromatin_clumping"], 0.05, 0.95))
    grain = np.exp(clumping * _texture_windows(rng, textures, np.full(n, 0.42, np.float32)))
    rim = _wide(_between(body.trait["chromatin_rim"], -0.55, 1.4))
    edge = np.exp(-(((body.nucleus_depth_NYX - 1.9) / 2.3) ** 2))
    dna = body.nucleus_NYX * grain * (1 + rim * edge) * (1 - 0.6 * nucleoli)
    cytoplasm = body.inside_NYX * body.outside_nucleus_NYX * np.exp(-np.maximum(-body.nucleus_depth_NYX, 0) / 14)
    rna = (
        _share(nucleoli, np.full(n, 0.34, np.float32))
        + _share(body.nucleus_NYX, np.full(n, 0.14, np.float32))
        + _share(cytoplasm, np.full(n, 0.52, np.float32))
    )
    return dna, rna


def _endoplasmic_reticulum(rng: np.random.Generator, body: _Bodies, textures: Floats) -> Floats:
    reach = _wide(np.exp(_between(body.trait["er_spread"], np.log(4.0), np.log(35.0))))
    sheet = np.exp(-np.maximum(-body.nucleus_depth_NYX, 0) / reach)
    grain = np.exp(0.75 * _texture_windows(rng, textures, _between(body.trait["er_coarseness"], 0.0, 1.0)))
    return body.inside_NYX * body.outside_nucleus_NYX * sheet * grain + 0.03 * body.inside_NYX


def _cortex(body: _Bodies) -> Floats:
    """Actin under the membrane."""
    return np.exp(-(((body.depth_NYX - 2.0) / 1.6) ** 2))


Points = tuple[Floats, Floats, Floats]
"""y, x and weight of each cell's points, (N, P), pixels from the nucleus."""


def _micronuclei(rng: np.random.Generator, body: _Bodies) -> Points:
    most = 4
    rate = np.exp(np.clip(0.85 * body.trait["micronuclei"] - 1.9, -6, 1.2))
    count = rng.poisson(rate)
    angle = rng.uniform(0, 2 * np.pi, (body.n, most))
    far = body.nucleus_radius[:, None] * rng.uniform(1.35, 1.75, (body.n, most))
    weight = (np.arange(most)[None] < count[:, None]) * rng.uniform(0.5, 1.2, (body.n, most))
    return _points(far * np.sin(angle), far * np.cos(angle), weight)


def _actin_fibres(rng: np.random.Generator, body: _Bodies) -> Points:
    n_fibres, n_steps = 12, 44
    spread = np.exp(_between(-body.trait["actin_alignment"], np.log(0.06), np.log(1.6)))[:, None]
    angle = body.angle[:, None] + spread * rng.standard_normal((body.n, n_fibres))
    far = body.radius[:, None] * 0.85 * np.sqrt(rng.random((body.n, n_fibres)))
    turn = rng.uniform(0, 2 * np.pi, (body.n, n_fibres))
    along = np.linspace(-1.0, 1.0, n_steps)[None, None] * (0.8 * body.radius)[:, None, None]
    y = (far * np.sin(turn) + body.centre_y[:, None])[..., None] + along * np.sin(angle)[..., None]
    x = (far * np.cos(turn) + body.centre_x[:, None])[..., None] + along * np.cos(angle)[..., None]
    y, x = y.reshape(body.n, -1), x.reshape(body.n, -1)
    return _points(y, x, body.at(body.inside_NYX, y, x))


def _golgi(rng: np.random.Generator, body: _Bodies) -> Points:
    n_pieces, n_each = 10, 8
    spread = np.exp(_between(body.trait["golgi_dispersal"], np.log(0.15), np.log(2.6)))[:, None]
    angle = body.golgi_angle[:, None] + spread * rng.standard_normal((body.n, n_pieces))
    gap = _between(body.trait["golgi_distance"], 0.8, 13.0)[:, None]
    far = (
        body.nucleus_radius[:, None]
        + gap
        + 1.6 * (0.6 + 0.9 * spread) * np.abs(rng.standard_normal((body.n, n_pieces)))
    )
    y = (far * np.sin(angle))[..., None] + 1.1 * rng.standard_normal((body.n, n_pieces, n_each))
    x = (far * np.cos(angle))[..., None] + 1.1 * rng.standard_normal((body.n, n_pieces, n_each))
    y, x = y.reshape(body.n, -1), x.reshape(body.n, -1)
    return _points(y, x, 0.05 + body.at(body.inside_NYX, y, x))


def _mitochondria(rng: np.random.Generator, body: _Bodies) -> Points:
    """Worms of equal total length: many short ones or a few long ones, near the nucleus or far, on one side or all."""
    n_points, step = 400, 0.9
    length = np.exp(_between(body.trait["mito_length"], np.log(3.0), np.log(66.0)))[:, None]
    index = np.arange(n_points)[None]
    worm = (index / length).astype(np.intp)
    is_start = np.diff(worm, axis=1, prepend=-1) > 0
    first = np.maximum.accumulate(np.where(is_start, index, 0), axis=1)

    def of_worm(values_NP: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.take_along_axis(values_NP, first, axis=1)

    bias = _between(body.trait["mito_polarity"], -0.9, 0.9)[:, None]
    turn = rng.uniform(-np.pi, np.pi, (body.n, n_points))
    turn = of_worm(turn - bias * np.sin(turn)) + body.golgi_angle[:, None]  # crowds towards the Golgi, or away from it
    power = np.exp(_between(-body.trait["mito_spread"], np.log(0.45), np.log(3.2)))[:, None]
    reach = of_worm(rng.random((body.n, n_points)) ** power)
    far = body.nucleus_radius[:, None] * 1.05 + (0.95 * body.radius - body.nucleus_radius)[:, None] * reach
    heading = turn + np.pi / 2 + of_worm(0.6 * rng.standard_normal((body.n, n_points)))
    bend = np.cumsum(0.22 * rng.standard_normal((body.n, n_points)), axis=1)
    heading = heading + bend - of_worm(bend)
    y, x = np.cumsum(step * np.sin(heading), axis=1), np.cumsum(step * np.cos(heading), axis=1)
    y, x = y - of_worm(y) + far * np.sin(turn), x - of_worm(x) + far * np.cos(turn)
    weight = body.at(body.inside_NYX, y, x) * (0.12 + 0.88 * body.at(body.outside_nucleus_NYX, y, x))
    return _points(y, x, weight)


def _points(y: NDArray[np.floating], x: NDArray[np.floating], weight: NDArray[np.floating]) -> Points:
    return y.astype(np.float32), x.astype(np.float32), weight.astype(np.float32)


def _splat(
    edge: int,
    row_N: NDArray[np.intp],
    column_N: NDArray[np.intp],
    y_NP: Floats,
    x_NP: Floats,
    weight_NP: Floats,
    *,
    total: Floats,
    keep_counts: bool = False,
) -> Floats:
    """Add points to an empty canvas, each shared by its four nearest pixels.

    Each cell's points sum to `total` (N,); with `keep_counts` each point of weight 1 holds `total` instead.
    """
    if not keep_counts:
        weight_NP = weight_NP / np.maximum(weight_NP.sum(axis=1, keepdims=True), 1e-3)
    weight = (weight_NP * total[:, None]).ravel()
    y = (y_NP + row_N[:, None]).ravel()
    x = (x_NP + column_N[:, None]).ravel()
    top, left = np.floor(y), np.floor(x)
    fy, fx = y - top, x - left
    weight = weight * ((top >= 0) & (left >= 0) & (top < edge - 1) & (left < edge - 1))
    at = (np.clip(top, 0, edge - 2) * edge + np.clip(left, 0, edge - 2)).astype(np.intp)
    canvas = np.zeros(edge * edge)
    for offset, part in ((0, (1 - fy) * (1 - fx)), (1, (1 - fy) * fx), (edge, fy * (1 - fx)), (edge + 1, fy * fx)):
        canvas += np.bincount(at + offset, weights=weight * part, minlength=edge * edge)
    return canvas.reshape(edge, edge).astype(np.float32)
