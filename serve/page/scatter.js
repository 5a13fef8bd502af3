// One map: points with colours, selected and hidden points, and marks on single crops.

import createScatterplot, { createRenderer } from "./vendor/regl-scatterplot.js";
import { el } from "./elements.js";
import { OTHER } from "./palettes.js";

const LARGE = 300000;

// Where frames of a moving large map take longer than this, only part of its points is drawn until it rests.
const SLOW_MS = 50;
const MOVING_POINTS = 50000;
const REST_MS = 250;

const INK = "#1d2329";
let renderer = null;

function range(values) {
  let [low, high] = [values[0], values[0]];
  for (const value of values) {
    if (value < low) low = value;
    if (value > high) high = value;
  }
  return [low, high];
}

/** Point size and opacity: single points stay visible, and a million do not merge into one area. */
function look(n) {
  if (n < 2000) return { pointSize: 6, opacity: 0.9 };
  if (n < 20000) return { pointSize: 4, opacity: 0.8 };
  if (n < 100000) return { pointSize: 3, opacity: 0.6 };
  return n < LARGE ? { pointSize: 2, opacity: 0.5 } : { pointSize: 1.5, opacity: 0.4 };
}

export class Scatter {
  /**
   * @param box element that the map fills.
   * @param nCrops crops of the catalog.
   * @param events `onSelect(rows)`, `onDeselect()`, `onClick(row)`, `onHover(row or null, {x, y})`.
   */
  constructor(box, nCrops, events) {
    this.box = box;
    this.nCrops = nCrops;
    this.events = events;
    this.title = el("p", { className: "plot-title" });
    this.stage = el("div", { className: "stage", tabIndex: 0, role: "application" });
    this.note = el("p", { className: "plot-note", role: "status", hidden: true });
    this.marks = el("div", { className: "marks", ariaHidden: "true" });
    box.append(this.title, this.stage, this.note);
    this.rows = new Uint32Array(0);
    this.marked = [];
    this.selected = new Uint32Array(0);
    this.shown = null;
    this.mouseMode = "panZoom";
    this.coloured = { codes: null, colours: ["#0072b2"] };
    this.queue = Promise.resolve();
    this.resizer = new ResizeObserver(() => this.resize());
    this.resizer.observe(this.stage);
    this.stage.addEventListener("keydown", (event) => this.onKey(event));
    this.stage.addEventListener("wheel", () => this.onMove(), { capture: true, passive: true });
    this.stage.addEventListener("pointermove", ({ buttons }) => {
      if (buttons && this.mouseMode === "panZoom") this.onMove();
    }, { capture: true });
  }

  destroy() {
    this.resizer.disconnect();
    clearTimeout(this.rest);
    this.plot?.destroy();
    this.box.replaceChildren();
  }

  setTitle(text) {
    this.title.textContent = text;
    this.stage.ariaLabel = `Map of ${text}. Arrow keys move it, plus and minus zoom, 0 shows the whole map.`;
  }

  setNote(text) {
    this.note.textContent = text;
    this.note.hidden = !text;
  }

  /** New points; resolves when they are drawn. */
  setPoints({ rows, x, y }) {
    return this.enqueue(async () => {
      this.rows = rows;
      this.place = new Int32Array(this.nCrops).fill(-1);
      for (let i = 0; i < rows.length; i++) this.place[rows[i]] = i;
      const wantsSquares = rows.length >= LARGE;
      if (!this.plot || this.hasSquares !== wantsSquares) this.create(wantsSquares);
      this.x = x;
      this.y = y;
      this.index = undefined;
      this.plot.set(look(rows.length));
      await this.draw();
      this.index = this.plot.get("spatialIndex");
      this.wholeMap();
      this.stage.dataset.points = rows.length; // read by tests
    });
  }

  setColours(coloured) {
    this.coloured = coloured;
    return this.enqueue(() => this.draw());
  }

  setSelected(rows) {
    this.selected = rows;
    return this.enqueue(() => this.drawSelected());
  }

  /** Show only these rows; null shows all. */
  setShown(rows) {
    this.shown = rows;
    return this.enqueue(() => this.drawShown());
  }

  /** Rings on single crops: `[{row, kind}]`, of kind `crop` or `neighbour`. */
  setMarks(marks) {
    this.marked = marks;
    this.drawMarks();
  }

  setMouseMode(mode) {
    this.mouseMode = mode;
    this.plot?.set({ mouseMode: mode });
    this.stage.classList.toggle("lassoing", mode === "lasso");
  }

  /** Move the camera so that all points fill the plot. */
  wholeMap() {
    if (!this.plot || !this.x?.length) return;
    const [left, right] = range(this.x);
    const [bottom, top] = range(this.y);
    const { width, height } = this.stage.getBoundingClientRect();
    // At distance 1 the height shows -1..1.
    const distance = Math.max(top - bottom, ((right - left) * height) / Math.max(1, width)) / 2;
    this.plot.zoomToLocation([(left + right) / 2, (bottom + top) / 2], Math.max(1e-3, 1.06 * distance));
    this.home = this.camera();
  }

  camera() {
    const [x, y] = this.plot.get("cameraTarget");
    return [x, y, this.plot.get("cameraDistance")].map((value) => value.toFixed(5)).join(" ");
  }

  enqueue(work) {
    this.queue = this.queue.then(work, work);
    return this.queue;
  }

  create(hasSquares) {
    this.plot?.destroy();
    this.stage.replaceChildren();
    const canvas = el("canvas");
    this.stage.append(canvas, this.marks);
    renderer ??= createRenderer();
    const { width, height } = this.stage.getBoundingClientRect();
    this.hasSquares = hasSquares;
    this.plot = createScatterplot({
      renderer, canvas, width: Math.max(1, width), height: Math.max(1, height),
      backgroundColor: [1, 1, 1, 1], pointColorHover: "#000000", lassoColor: "#0072b2", lassoMinDelay: 8,
      opacityInactiveScale: 0.3, opacityInactiveMax: 0.4, pointSizeSelected: 1, pointOutlineWidth: 0,
      deselectOnEscape: false, deselectOnDblClick: true, mouseMode: this.mouseMode,
      renderPointsAsSquares: hasSquares, // at that number and size they look like discs, and are drawn faster
    });
    this.plot.subscribe("select", ({ points }) => {
      if (points.length === 1) {
        this.drawSelected();
        this.events.onClick(this.rows[points[0]]);
      } else {
        this.events.onSelect(Uint32Array.from(points, (i) => this.rows[i]).sort());
      }
    });
    this.plot.subscribe("deselect", () => this.events.onDeselect());
    this.plot.subscribe("view", () => this.onView());
    this.plot.subscribe("pointOver", (i) => {
      const [x, y] = this.plot.getScreenPosition(i) ?? [0, 0];
      const corner = this.stage.getBoundingClientRect();
      this.events.onHover(this.rows[i], { x: corner.left + x, y: corner.top + y });
    });
    this.plot.subscribe("pointOut", () => this.events.onHover(null));
  }

  async draw() {
    if (!this.plot) return;
    const { codes, colours } = this.coloured;
    const points = { x: this.x, y: this.y };
    if (codes) {
      points.z = new Uint8Array(this.rows.length);
      for (let i = 0; i < this.rows.length; i++) points.z[i] = codes[this.rows[i]];
    }
    const colourBy = codes ? "valueA" : null;
    // A palette of one colour would also colour the selected points, so it gets a second entry.
    const palette = colours.length > 1 ? colours : [colours[0], colours[0]];
    // Selected crops without their own colour must stand out from the other grey points.
    const active = palette.map((colour) => (colour === OTHER ? INK : colour));
    // The plot uses active colours only where all three lists have one length.
    const hover = palette.map(() => "#000000");
    this.plot.set({ colorBy: colourBy, pointColor: palette, pointColorActive: active, pointColorHover: hover });
    await this.plot.draw(points, { zDataType: "categorical", spatialIndex: this.index });
    this.plot.set({ pointOrder: this.order(points.z, palette) });
    this.drawShown();
    this.drawSelected();
    this.drawMarks();
  }

  /** Draw points without their own colour first, so that they cover no others; null keeps the order. */
  order(z, palette) {
    const other = palette.indexOf(OTHER);
    if (!z || other < 0 || !z.includes(other)) return null;
    const order = [];
    for (let i = 0; i < z.length; i++) if (z[i] === other) order.push(i);
    for (let i = 0; i < z.length; i++) if (z[i] !== other) order.push(i);
    return order;
  }

  onView() {
    this.drawMarks();
    const now = performance.now();
    const gap = now - (this.lastView ?? 0);
    this.lastView = now;
    const isSlow = this.rows.length >= LARGE && gap > SLOW_MS && gap < 3000;
    this.nSlow = isSlow ? (this.nSlow ?? 0) + 1 : 0;
    if (this.nSlow >= 2 && !this.isThin) {
      this.isSlowHere = true;
      this.thin();
    }
    if (!this.isThin) return;
    clearTimeout(this.rest);
    // A rest is longer than several slow frames.
    this.rest = setTimeout(() => this.thicken(), Math.max(REST_MS, gap < 3000 ? 4 * gap : 0));
  }

  /** Start of a movement: where the map was slow before, it is thinned without waiting for two slow frames. */
  onMove() {
    if (!this.isSlowHere || this.isThin || this.rows.length < LARGE) return;
    this.thin();
    clearTimeout(this.rest);
    this.rest = setTimeout(() => this.thicken(), 4 * REST_MS);
  }

  /** Draw every nth point, and all selected points where they are few. */
  thin() {
    const of = this.shown ? this.pointsOf(this.shown) : this.rows;
    const step = Math.ceil(of.length / MOVING_POINTS);
    if (step < 2) return;
    this.isThin = true;
    this.stage.dataset.thin = `every ${step}th point while the map moves`;
    const isDrawn = new Uint8Array(this.rows.length);
    for (let i = 0; i < of.length; i += step) isDrawn[this.shown ? of[i] : i] = 1;
    const points = this.selected.length <= MOVING_POINTS ? this.pointsOf(this.selected) : [];
    for (const point of points) isDrawn[point] = 1;
    const drawn = [];
    for (let i = 0; i < isDrawn.length; i++) if (isDrawn[i]) drawn.push(i);
    this.plot.filter(drawn, { preventEvent: true });
  }

  thicken() {
    this.isThin = false;
    this.nSlow = 0;
    delete this.stage.dataset.thin;
    this.drawShown();
    this.drawSelected();
  }

  pointsOf(rows) {
    const found = [];
    for (let i = 0; i < rows.length; i++) if (this.place[rows[i]] >= 0) found.push(this.place[rows[i]]);
    return found;
  }

  drawShown() {
    if (!this.plot) return;
    if (this.shown) this.plot.filter(this.pointsOf(this.shown), { preventEvent: true });
    else this.plot.unfilter({ preventEvent: true });
  }

  drawSelected() {
    if (!this.plot) return;
    const points = this.pointsOf(this.selected);
    if (points.length) this.plot.select(points, { preventEvent: true });
    else this.plot.deselect({ preventEvent: true });
  }

  drawMarks() {
    if (!this.plot || !this.place) return;
    const rings = this.marked.map(({ row, kind }) => {
      const point = this.place[row] ?? -1;
      const at = point >= 0 ? this.plot.getScreenPosition(point) : null;
      if (!at) return null;
      const ring = el("span", { className: `ring ${kind}` });
      ring.style.transform = `translate(${at[0]}px, ${at[1]}px)`;
      return ring;
    });
    this.marks.replaceChildren(...rings.filter(Boolean));
  }

  resize() {
    const { width, height } = this.stage.getBoundingClientRect();
    if (width <= 1 || height <= 1 || !this.plot) return;
    const isWhole = this.home === this.camera();
    this.plot.set({ width, height });
    if (isWhole) this.wholeMap();
    requestAnimationFrame(() => this.drawMarks());
  }

  onKey(event) {
    if (!this.plot || event.ctrlKey || event.metaKey || event.altKey) return;
    const distance = this.plot.get("cameraDistance");
    const [x, y] = this.plot.get("cameraTarget");
    const step = 0.12 * distance;
    const moves = {
      ArrowLeft: [-step, 0, 1], ArrowRight: [step, 0, 1], ArrowUp: [0, step, 1], ArrowDown: [0, -step, 1],
      "+": [0, 0, 0.8], "=": [0, 0, 0.8], "-": [0, 0, 1.25],
    };
    const move = moves[event.key];
    if (!move) return;
    event.preventDefault();
    this.onMove();
    this.plot.zoomToLocation([x + move[0], y + move[1]], distance * move[2], {
      transition: true, transitionDuration: 120,
    });
  }
}
