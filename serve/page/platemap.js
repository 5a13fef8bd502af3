// Plates as grids of wells, coloured by the selection or by the colour of the map. A click on a well selects its crops.

import { el, number } from "./elements.js";
import { OTHER, viridis } from "./palettes.js";

const SCALE = viridis(64);
const SVG = "http://www.w3.org/2000/svg";
const MAX_PLATES = 48;

const svg = (name, attributes) => {
  const element = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  return element;
};

/**
 * Counts of each well.
 *
 * @returns plates, each `{plate, wells}`, with the wells by 100 * row + column.
 */
export function wellsOf({ plate, well: names, row, column, colour }, nCrops, isSelected, coloured) {
  const plates = plate.categories.map((name) => ({ plate: name, wells: new Map() }));
  const isNumber = colour?.kind === "number";
  for (let i = 0; i < nCrops; i++) {
    if (Number.isNaN(row.values[i])) continue;
    const { wells } = plates[plate.values[i]];
    const key = row.values[i] * 100 + column.values[i];
    let well = wells.get(key);
    if (!well) {
      well = {
        name: names.categories[names.values[i]], row: row.values[i], column: column.values[i],
        n: 0, selected: 0, sum: 0, nValues: 0, codes: new Map(),
      };
      wells.set(key, well);
    }
    well.n++;
    well.selected += isSelected[i];
    if (isNumber && !Number.isNaN(colour.values[i])) {
      well.sum += colour.values[i];
      well.nValues++;
    } else if (coloured?.codes) {
      const code = coloured.codes[i];
      well.codes.set(code, (well.codes.get(code) ?? 0) + 1);
    }
  }
  return plates.filter(({ wells }) => wells.size);
}

export class PlateMap {
  /**
   * @param formats rows and columns of the standard plates, from small to large, as the service lists them.
   * @param onPick called with plate and well such as `B03`.
   */
  constructor(box, formats, onPick) {
    this.box = box;
    this.formats = formats;
    this.onPick = onPick;
    this.by = "selection";
    this.bySelect = el("select", { ariaLabel: "Colour of the wells" });
    this.bySelect.addEventListener("change", () => {
      this.by = this.bySelect.value;
      this.draw();
    });
    this.scale = el("span", { className: "plate-scale" });
    this.list = el("div", { className: "plates" });
    box.append(el("div", { className: "bar" }, el("span", {}, "Wells coloured by"), this.bySelect,
      el("span", { className: "gap" }), this.scale), this.list);
  }

  /** @param plates of `wellsOf`; @param column that colours the map, or null; @param coloured of `colouring`. */
  set(plates, column, coloured, nSelected) {
    Object.assign(this, { plates, column, coloured, nSelected });
    const options = [["selection", "share selected"], ["count", "crops"], ...(column ? [["colour", column.name]] : [])];
    if (!options.some(([value]) => value === this.by)) this.by = "selection";
    this.bySelect.replaceChildren(...options.map(([value, text]) => el("option", { value }, text)));
    this.bySelect.value = this.by;
    this.draw();
  }

  draw() {
    const largest = Math.max(1, ...this.plates.flatMap(({ wells }) => [...wells.values()].map((well) => well.n)));
    const shown = this.plates.slice().sort((a, b) => a.plate.localeCompare(b.plate, "en", { numeric: true }));
    this.drawScale(largest);
    this.list.replaceChildren(...shown.slice(0, MAX_PLATES).map((plate) => this.grid(plate, largest)));
    if (shown.length > MAX_PLATES) {
      const left = shown.length - MAX_PLATES;
      this.list.append(el("p", { className: "empty" }, `${left} more plates are not drawn.`));
    }
  }

  drawScale(largest) {
    const isCategory = this.by === "colour" && !this.coloured.scale;
    if (isCategory) return void this.scale.replaceChildren("most frequent value, in the colours of the map");
    const [low, high] = this.by === "colour" ? this.coloured.scale : this.by === "count" ? [0, largest] : [0, 1];
    const canvas = el("canvas", { width: 64, height: 1, className: "scale", ariaHidden: "true" });
    const pen = canvas.getContext("2d");
    SCALE.forEach((colour, i) => {
      pen.fillStyle = colour;
      pen.fillRect(i, 0, 1, 1);
    });
    this.scale.replaceChildren(number(low), canvas, number(high));
  }

  /** Colour and text of a well. */
  look(well, largest) {
    const share = well.selected / well.n;
    const step = (value) => SCALE[Math.max(0, Math.min(63, Math.floor(value * 64)))];
    if (this.by === "count") return [step(well.n / largest), `${number(well.n)} crops`];
    if (this.by === "selection") {
      return [well.selected ? step(share) : "#ececec", `${number(well.selected)} of ${number(well.n)} selected`];
    }
    if (this.coloured.scale) {
      if (!well.nValues) return [OTHER, "no value"];
      const [low, high] = this.coloured.scale;
      const mean = well.sum / well.nValues;
      return [step(high > low ? (mean - low) / (high - low) : 0), `mean ${number(mean)}`];
    }
    const [code, n] = [...well.codes].reduce((best, each) => (each[1] > best[1] ? each : best), [-1, 0]);
    const label = this.coloured.entries[code]?.label ?? "other";
    return [this.coloured.colours[code] ?? OTHER, `${label}: ${number(n)} of ${number(well.n)}`];
  }

  grid({ plate, wells }, largest) {
    const all = [...wells.values()];
    const [lastRow, lastColumn] = [Math.max(...all.map((w) => w.row)), Math.max(...all.map((w) => w.column))];
    const format = this.formats.find(([rows, columns]) => lastRow < rows && lastColumn < columns);
    const [rows, columns] = format ?? [lastRow + 1, lastColumn + 1];
    const picture = svg("svg", {
      viewBox: `-14 -11 ${columns * 10 + 15} ${rows * 10 + 12}`, role: "group", "aria-label": `Plate ${plate}`,
    });
    if (columns > 12) picture.setAttribute("class", "many");
    const every = columns > 12 ? 4 : 2;
    for (let c = 0; c < columns; c += every) picture.append(label(c * 10 + 5, -3, c + 1, "middle"));
    for (let r = 0; r < rows; r += rows > 8 ? 3 : 1) picture.append(label(-3, r * 10 + 7, letters(r), "end"));
    const cells = [];
    for (let r = 0; r < rows; r++) {
      for (let c = 0; c < columns; c++) {
        const well = wells.get(r * 100 + c);
        const cell = svg("rect", { x: c * 10 + 0.5, y: r * 10 + 0.5, width: 9, height: 9, rx: 1.5 });
        picture.append(cell);
        if (!well) {
          cell.setAttribute("class", "no-well");
          continue;
        }
        const { name } = well;
        const [fill, says] = this.look(well, largest);
        cell.setAttribute("class", well.selected ? "well has-selected" : "well");
        cell.setAttribute("fill", fill);
        cell.setAttribute("role", "button");
        cell.setAttribute("tabindex", cells.length ? "-1" : "0");
        cell.setAttribute("aria-label", `${name}: ${says}`);
        const title = svg("title", {});
        title.textContent = `${plate} ${name} · ${says}`;
        cell.append(title);
        cell.addEventListener("click", () => this.onPick(plate, name));
        cells.push({ cell, r, c, pick: () => this.onPick(plate, name) });
      }
    }
    picture.addEventListener("keydown", (event) => walk(event, cells));
    const nSelected = all.reduce((sum, well) => sum + well.selected, 0);
    return el("figure", {}, el("figcaption", {}, el("strong", {}, plate), ` ${number(nSelected)} selected`), picture);
  }
}

const letters = (row) => (row < 26 ? String.fromCharCode(65 + row) : `A${String.fromCharCode(65 + row - 26)}`);

function label(x, y, text, anchor) {
  const element = svg("text", { x, y, "text-anchor": anchor });
  element.textContent = text;
  return element;
}

function walk(event, cells) {
  const at = cells.find(({ cell }) => cell === document.activeElement);
  if (!at) return;
  if (event.key === "Enter" || event.key === " ") {
    event.preventDefault();
    return void at.pick();
  }
  const steps = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] };
  const step = steps[event.key];
  const next = step && cells.find(({ r, c }) => r === at.r + step[0] && c === at.c + step[1]);
  if (!next) return;
  event.preventDefault();
  at.cell.setAttribute("tabindex", "-1");
  next.cell.setAttribute("tabindex", "0");
  next.cell.focus();
}
