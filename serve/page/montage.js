// A montage of crops with channel controls. All crops have one contrast.

import { getCrops, getMontage } from "./api.js";
import { el, number } from "./elements.js";

const COUNTS = [24, 60, 120, 200];

// Display of the channels on all montages of the page: name to `{isOn, black, white, colour, isSet}`.
const views = new Map();
const listeners = [];

/** Add a function that is called after a change of channels or contrast. */
export function onChannels(listener) {
  listeners.push(listener);
}

function shownChannels() {
  if (!views.size) return undefined;
  return [...views].filter(([, view]) => view.isOn).map(([name, view]) => ({
    name, colour: view.colour, ...(view.isSet ? { black: view.black, white: view.white } : {}),
  }));
}

/** Draw tiles into `box`; `caption(crop)` is the text below a tile, or "". Returns the channels of the crops. */
export async function drawTiles(box, crops, { onPick, caption = () => "" }) {
  const wanted = shownChannels();
  const sheet = await getMontage(crops.map((crop) => crop.crop_id), wanted);
  for (const { name, is_on: isOn, black, white, colour } of sheet.channels) {
    const known = views.get(name);
    if (!known) views.set(name, { isOn: wanted === undefined || isOn, black, white, colour, isSet: false });
    else if (!known.isSet) Object.assign(known, { black, white });
  }
  const tiles = crops.map((crop, i) => {
    const canvas = el("canvas", { width: sheet.tile, height: sheet.tile });
    const [x, y] = [(i % sheet.columns) * sheet.tile, Math.floor(i / sheet.columns) * sheet.tile];
    canvas.getContext("2d").drawImage(sheet.image, x, y, sheet.tile, sheet.tile, 0, 0, sheet.tile, sheet.tile);
    const about = [crop.plate, crop.well, `site ${crop.site}`, crop.perturbation || crop.gene || crop.compound]
      .filter(Boolean).join(" · ");
    const tile = el("button", { type: "button", className: "tile", title: about, ariaLabel: about }, canvas);
    if (caption(crop)) tile.append(el("span", {}, caption(crop)));
    tile.tabIndex = i ? -1 : 0;
    tile.addEventListener("click", () => onPick(crop));
    return tile;
  });
  box.replaceChildren(...tiles);
  box.onkeydown = (event) => walk(event, box, tiles);
  return sheet.channels.map((channel) => channel.name);
}

/** Arrow keys move between tiles; Tab leaves them. */
function walk(event, box, tiles) {
  const at = tiles.indexOf(document.activeElement);
  const perRow = tiles.filter((tile) => tile.offsetTop === tiles[0].offsetTop).length;
  const steps = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -perRow, ArrowDown: perRow };
  const next = tiles[at + steps[event.key]];
  if (at < 0 || !next) return;
  event.preventDefault();
  tiles[at].tabIndex = -1;
  next.tabIndex = 0;
  next.focus();
}

/** A table with a row for each channel: on or off, colour, black and white. */
export function drawChannels(box, names) {
  const rows = names.map((name) => {
    const view = views.get(name);
    const isOn = el("input", { type: "checkbox", checked: view.isOn });
    const colour = el("input", { type: "color", value: view.colour, ariaLabel: `Colour of ${name}` });
    const limit = (which) =>
      el("input", { type: "number", step: "any", value: tidy(view[which]), ariaLabel: `${name}: intensity shown as ${which}` });
    const [black, white] = [limit("black"), limit("white")];
    const apply = () => {
      const limits = [Number(black.value), Number(white.value)];
      const isSet = view.isSet || black.value !== tidy(view.black) || white.value !== tidy(view.white);
      const isSound = limits[1] > limits[0];
      white.setCustomValidity(isSound ? "" : "White must be above black.");
      if (!isSound) return void white.reportValidity();
      Object.assign(view, { isOn: isOn.checked, colour: colour.value, isSet });
      if (isSet) Object.assign(view, { black: limits[0], white: limits[1] });
      for (const listener of listeners) listener();
    };
    for (const input of [isOn, colour, black, white]) input.addEventListener("change", apply);
    return el("tr", {}, el("td", {}, el("label", {}, isOn, ` ${name}`)), el("td", {}, colour), el("td", {}, black),
      el("td", {}, white));
  });
  const auto = el("button", { type: "button", className: "quiet", title: "1st to 99.8th percentile of these crops" }, "Auto");
  auto.addEventListener("click", () => {
    for (const view of views.values()) view.isSet = false;
    for (const listener of listeners) listener();
  });
  box.replaceChildren(el("table", { className: "channels" },
    el("thead", {}, el("tr", {}, ...["Channel", "", "Black", "White"].map((text, i) =>
      el("th", {}, text, i === 3 ? auto : null)))),
    el("tbody", {}, ...rows)));
}

const tidy = (value) => String(Number(Number(value).toPrecision(5)));

/** The tab with crops of the selection. */
export class Montage {
  constructor(box, onPick) {
    this.box = box;
    this.onPick = onPick;
    this.count = COUNTS[0];
    this.start = 0;
    this.rows = new Uint32Array(0);
    this.about = el("span", {});
    this.more = el("button", { type: "button", className: "quiet", title: "Show other crops of the selection" }, "Others");
    this.more.addEventListener("click", () => {
      this.start++;
      this.draw();
    });
    const counts = el("select", { ariaLabel: "Number of crops" });
    counts.append(...COUNTS.map((n) => el("option", { value: n }, `${n} crops`)));
    counts.addEventListener("change", () => {
      this.count = Number(counts.value);
      this.draw();
    });
    this.bar = el("div", { className: "bar" }, this.about, el("span", { className: "gap" }), this.more, counts);
    this.tiles = el("div", { className: "tiles" });
    this.channels = el("div", { className: "channel-box" });
    this.empty = el("p", { className: "empty" },
      "To select crops, drag a lasso around points (L), enter a SQL condition, or click a colour of the legend.");
    box.append(this.empty, this.bar, this.tiles, this.channels);
    onChannels(() => this.draw(true));
    this.show();
  }

  setRows(rows) {
    this.rows = rows;
    this.start = 0;
    return this.draw();
  }

  show() {
    const isEmpty = !this.rows.length;
    this.empty.hidden = !isEmpty;
    for (const part of [this.bar, this.tiles, this.channels]) part.hidden = isEmpty;
  }

  /** A sample evenly over the selection, so that it has crops of all plates. */
  sample() {
    const n = Math.min(this.count, this.rows.length);
    const step = this.rows.length / n;
    const shift = (this.start * 0.6180339887) % 1;
    return Uint32Array.from({ length: n }, (_, i) => this.rows[Math.floor((i + shift) * step) % this.rows.length]);
  }

  async draw(isSame = false) {
    this.show();
    if (!this.rows.length || this.box.hidden) return (this.isStale = true);
    this.isStale = false;
    const turn = (this.turn = {});
    const rows = this.sample();
    const n = this.rows.length;
    this.about.textContent = rows.length < n ? `${rows.length} of ${number(n)}` : `All ${number(n)}`;
    this.more.hidden = rows.length === n;
    this.tiles.classList.add("waiting");
    try {
      const crops = isSame && this.crops ? this.crops : await getCrops(rows);
      if (turn !== this.turn) return false;
      this.crops = crops;
      const names = await drawTiles(this.tiles, crops, { onPick: this.onPick });
      if (turn === this.turn && (!isSame || !this.channels.contains(document.activeElement))) {
        drawChannels(this.channels, names);
      }
    } catch (error) {
      if (turn === this.turn) this.tiles.replaceChildren(el("p", { className: "empty" }, error.message));
    } finally {
      this.tiles.classList.remove("waiting");
    }
    return true;
  }
}
