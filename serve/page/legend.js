// The legend of the colours. A click on an entry selects its crops.

import { el, number } from "./elements.js";
import { viridis } from "./palettes.js";

/**
 * @param box element to draw in.
 * @param column that colours the map, or null.
 * @param coloured of `colouring`.
 * @param highlighted category, or "".
 * @param onSelect called with the members of an entry.
 * @param onHighlight called with a category, or "".
 */
export function drawLegend(box, column, coloured, highlighted, { onSelect, onHighlight }) {
  box.replaceChildren();
  if (!column) return;
  box.append(el("span", { className: "legend-title" }, column.name));
  if (coloured.scale) {
    const [low, high] = coloured.scale;
    const canvas = el("canvas", { width: 128, height: 1, className: "scale", ariaHidden: "true" });
    const pen = canvas.getContext("2d");
    viridis(128).forEach((colour, i) => {
      pen.fillStyle = colour;
      pen.fillRect(i, 0, 1, 1);
    });
    box.append(el("span", {}, `≤ ${number(low)}`), canvas, el("span", {}, `≥ ${number(high)}`));
    if (coloured.hasNothing) box.append(el("span", { className: "none-swatch" }, "none"));
    return;
  }
  for (const entry of coloured.entries) {
    const swatch = el("span", { className: "swatch", ariaHidden: "true" });
    swatch.style.background = entry.colour;
    const button = el("button", { type: "button", className: "entry", title: `Select ${entry.label}` }, swatch,
      el("span", { className: "entry-label" }, entry.label), el("span", { className: "entry-n" }, number(entry.n)));
    button.addEventListener("click", () => onSelect(entry));
    box.append(button);
  }
  if (coloured.isLarge || highlighted) {
    const list = el("datalist", { id: "categories" });
    list.append(...column.categories.slice(0, 2000).filter(Boolean).map((name) => el("option", { value: name })));
    const input = el("input", {
      type: "text", id: "highlight", placeholder: "highlight one…", value: highlighted, size: 16,
      ariaLabel: `Highlight one value of ${column.name}`,
    });
    input.setAttribute("list", "categories");
    input.addEventListener("change", () =>
      onHighlight(column.categories.includes(input.value) ? input.value : ""));
    box.append(input, list);
  }
}
