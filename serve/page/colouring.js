// Assigns a colour to each crop by a column, and builds the legend.

import { CATEGORIES, HIGHLIGHT, OTHER, viridis } from "./palettes.js";

const STEPS = 128;

/**
 * Codes and colours for a column.
 *
 * @param column of `getColumn`, or null for one colour.
 * @param rows rows whose values determine the largest categories and the ends of the scale.
 * @param highlighted the only category with a colour; "" colours the largest seven.
 * @returns `{codes, colours, entries, scale}`: for every crop of the catalog an index into `colours`; `entries` of the
 *     legend with their values of `column.values`; `scale` of a number, [low, high].
 */
export function colouring(column, rows, highlighted = "") {
  if (!column) return { codes: null, colours: [CATEGORIES[0]], entries: [], scale: null };
  return column.kind === "number" ? ofNumber(column, rows) : ofCategory(column, rows, highlighted);
}

function ofCategory(column, rows, highlighted) {
  const counts = new Float64Array(column.categories.length);
  for (let i = 0; i < rows.length; i++) counts[column.values[rows[i]]]++;
  const order = [...counts.keys()].filter((k) => counts[k] > 0).sort((a, b) => counts[b] - counts[a] || a - b);
  const named = order.filter((k) => column.categories[k] !== "");
  const place = highlighted ? column.categories.indexOf(highlighted) : -1;
  const own = place >= 0 ? [place] : named.slice(0, named.length <= 8 ? 8 : 7);
  // With eight categories there is no "other", so the eighth has its own colour.
  const palette = place >= 0 ? [HIGHLIGHT] : [...CATEGORIES, "#000000"];
  const colours = own.map((_, i) => palette[i]);
  const codeOf = new Uint8Array(column.categories.length).fill(own.length);
  own.forEach((category, i) => (codeOf[category] = i));
  colours.push(OTHER);
  const entries = own.map((k, i) => ({
    label: column.categories[k], colour: colours[i], n: counts[k], members: new Set([k]),
  }));
  const others = order.filter((k) => !own.includes(k));
  const nameless = others.length === 1 && column.categories[others[0]] === "";
  if (others.length) {
    const label = nameless ? "(none)" : `other (${others.length.toLocaleString("en")})`;
    entries.push({ label, colour: OTHER, n: others.reduce((sum, k) => sum + counts[k], 0), members: new Set(others) });
  }
  const codes = new Uint8Array(column.values.length);
  for (let i = 0; i < codes.length; i++) codes[i] = codeOf[column.values[i]];
  return { codes, colours, entries, scale: null, isLarge: named.length > 8 };
}

function ofNumber(column, rows) {
  const { values } = column;
  const step = Math.max(1, Math.floor(rows.length / 20000));
  const sample = [];
  for (let i = 0; i < rows.length; i += step) if (!Number.isNaN(values[rows[i]])) sample.push(values[rows[i]]);
  sample.sort((a, b) => a - b);
  // The scale ends at the 1st and 99th percentile, so that extreme values do not flatten the others.
  let low = sample[Math.floor(0.01 * (sample.length - 1))] ?? 0;
  let high = sample[Math.ceil(0.99 * (sample.length - 1))] ?? 1;
  if (high <= low) [low, high] = [sample[0] ?? 0, sample.at(-1) ?? 1];
  const codes = new Uint8Array(values.length);
  const factor = high > low ? STEPS / (high - low) : 0;
  for (let i = 0; i < codes.length; i++) {
    const value = values[i];
    codes[i] = Number.isNaN(value) ? STEPS : Math.max(0, Math.min(STEPS - 1, Math.floor((value - low) * factor)));
  }
  const hasNothing = rows.some?.((row) => codes[row] === STEPS) ?? false;
  return { codes, colours: [...viridis(STEPS), OTHER], entries: [], scale: [low, high], hasNothing };
}
