// The page: loads the view of the address, and passes selections from one part to the others.

import * as api from "./api.js";
import { colouring } from "./colouring.js";
import { CropCard } from "./crop.js";
import { byId, el, number, saveFile } from "./elements.js";
import { Hover } from "./hover.js";
import { listenToKeys } from "./keys.js";
import { drawLegend } from "./legend.js";
import { Montage } from "./montage.js";
import { PlateMap, wellsOf } from "./platemap.js";
import { QcView } from "./qc.js";
import { Scatter } from "./scatter.js";
import { whereOf, quoted } from "./sql.js";
import { change, onChange, readAddress, state } from "./state.js";

const TABS = ["montage", "plates", "crop", "qc"];
const PREFERRED_COLOURS = ["perturbation", "gene", "compound", "plate"];
const NOTHING = new Uint32Array(0);

const columns = new Map();
// Exported for the benchmark, which moves the map.
export const slots = { representation: null, compared: null };
let representations = [];
let nCrops = 0;
let selected = NOTHING;
let shown = null;
let highlighted = "";
let coloured = colouring(null, NOTHING);
let parts;

start().catch(report);

async function start() {
  api.onKeyWanted(askForKey);
  const [listed, { columns: names, plate_formats: plateFormats }] = await Promise.all([api.getRepresentations(), api.getColumns()]);
  ({ n_crops: nCrops } = listed);
  representations = listed.representations.map((each) => ({ ...each, ...named(each) }));
  if (!representations.length) throw new Error("No representation has embeddings yet. Run `cytolake embed` first.");
  fillSelects(names);
  parts = {
    montage: new Montage(byId("panel-montage"), (crop) => lookAt(crop.crop_id)),
    plates: new PlateMap(byId("panel-plates"), plateFormats, (plate, well) => select(`plate = ${quoted(plate)} AND well = ${quoted(well)}`)),
    crop: new CropCard(byId("panel-crop"), {
      onPick: (crop) => lookAt(crop.crop_id),
      onNeighbours: mark,
      onSelect: (rows) => selectRows(rows),
      onSite: ({ plate, well, site }) =>
        select(`plate = ${quoted(plate)} AND well = ${quoted(well)} AND site = ${quoted(site)}`),
    }),
    qc: new QcView(byId("panel-qc"), (where) => select(where)),
    hover: new Hover(),
  };
  listenToPage();
  const champion = representations.find((each) => each.is_champion) ?? representations[0];
  const has = (id) => representations.some((each) => each.representation_id === id);
  const wanted = { colour: PREFERRED_COLOURS.find((name) => names.some((each) => each.name === name)) ?? "", ...readAddress() };
  if (!has(wanted.representation)) wanted.representation = champion.representation_id;
  if (!has(wanted.compared)) wanted.compared = "";
  if (!TABS.includes(wanted.tab)) wanted.tab = "montage";
  if (!names.some((each) => each.name === wanted.colour)) wanted.colour = "";
  if (!["umap", "pca"].includes(wanted.method)) wanted.method = "umap";
  onChange(follow);
  Object.assign(state, { representation: "", compared: "", method: "", colour: "", only: "", select: "", tab: "", crop: "" });
  change(wanted);
  if (!wanted.select) say(`${number(nCrops)} crops in the catalog.`);
}

/** Long and short name of a representation, for lists and titles. */
function named({ kind, model, block, pooling, alignment, dim, n, representation_id: id }) {
  const what = [model || (id.length > 24 ? id.slice(0, 8) : id), kind && kind !== model && kind, block >= 0 && `block ${block}`, pooling, alignment]
    .filter(Boolean).join(" · ");
  return { short: what, long: `${what} · ${dim} values · ${number(n)} crops` };
}

function fillSelects(names) {
  const option = (each) => {
    const text = `${each.is_champion ? "★ " : ""}${each.short}`;
    return el("option", { value: each.representation_id, title: each.long }, text);
  };
  byId("representation").append(...representations.map(option));
  byId("compared").append(el("option", { value: "" }, "nothing"), ...representations.map(option));
  const sorted = [...names].sort((a, b) => a.name.endsWith("_id") - b.name.endsWith("_id"));
  byId("colour").append(el("option", { value: "" }, "one colour"), ...sorted.map(({ name }) => el("option", {}, name)));
  byId("sql-columns").append(...names.map(({ name }) => el("option", { value: `${name} = ` })));
}

function listenToPage() {
  for (const name of ["representation", "compared", "method", "colour"]) {
    byId(name).addEventListener("change", (event) => change({ [name]: event.target.value }));
  }
  byId("sql-form").addEventListener("submit", (event) => {
    event.preventDefault();
    select(byId("sql").value.trim());
  });
  byId("sql").addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || !event.shiftKey) return;
    event.preventDefault();
    change({ only: byId("sql").value.trim() });
  });
  byId("show-only").addEventListener("click", () => change({ only: byId("sql").value.trim() }));
  byId("show-all").addEventListener("click", () => change({ only: "" }));
  byId("lasso").addEventListener("click", toggleLasso);
  byId("reset-view").addEventListener("click", wholeMap);
  byId("clear").addEventListener("click", clear);
  byId("copy-ids").addEventListener("click", copyIds);
  byId("save-csv").addEventListener("click", () => save("csv", "crops.csv"));
  byId("save-curation").addEventListener("click", () => save("curation", "selection.yaml"));
  for (const tab of TABS) byId(`tab-${tab}`).addEventListener("click", () => change({ tab }));
  byId("tabs").addEventListener("keydown", (event) => {
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!step) return;
    event.preventDefault();
    change({ tab: TABS[(TABS.indexOf(state.tab) + step + TABS.length) % TABS.length] });
    byId(`tab-${state.tab}`).focus();
  });
  window.addEventListener("hashchange", () => {
    const empty = { compared: "", colour: "", only: "", select: "", crop: "" };
    change({ ...empty, ...readAddress() });
  });
  listenToKeys({
    "/": () => byId("sql").select(),
    l: toggleLasso,
    Escape: () => (byId("lasso").ariaPressed === "true" ? toggleLasso() : clear()),
    0: wholeMap,
    ...Object.fromEntries(TABS.map((tab, i) => [i + 1, () => change({ tab })])),
    n: () => parts.crop.selectNeighbours(),
    y: copyIds,
    u: () => change({ method: state.method === "umap" ? "pca" : "umap" }),
    r: (event) => {
      const at = representations.findIndex((each) => each.representation_id === state.representation);
      const next = (at + (event.shiftKey ? -1 : 1) + representations.length) % representations.length;
      change({ representation: representations[next].representation_id });
    },
  });
}

/** Update the parts of the page after a change of the state. */
async function follow(changed) {
  for (const name of ["representation", "compared", "method", "colour"]) byId(name).value = state[name] ?? "";
  try {
    if (changed.has("compared")) layOut();
    if (changed.has("tab")) showTab();
    const work = [];
    if (changed.has("only")) work.push(showOnly());
    if (changed.has("colour")) {
      highlighted = "";
      work.push(recolour());
    }
    if (changed.has("representation") || changed.has("method")) work.push(loadMap("representation"));
    if (state.compared && (changed.has("compared") || changed.has("method"))) work.push(loadMap("compared"));
    if (changed.has("select")) work.push(runSelect());
    if (changed.has("crop") || (changed.has("representation") && state.crop)) {
      work.push(parts.crop.set(state.crop, representation("representation")));
    }
    await Promise.all(work);
  } catch (error) {
    report(error);
  }
}

const representation = (slot) => representations.find((each) => each.representation_id === state[slot]);

/** One map or two side by side. */
function layOut() {
  const wanted = state.compared ? ["representation", "compared"] : ["representation"];
  for (const slot of Object.keys(slots)) {
    if (wanted.includes(slot) === Boolean(slots[slot])) continue;
    if (slots[slot]) {
      slots[slot].scatter.destroy();
      slots[slot].box.remove();
      slots[slot] = null;
      continue;
    }
    const box = el("div", { className: "plot" });
    byId("plots").append(box);
    slots[slot] = { box, scatter: new Scatter(box, nCrops, {
      onSelect: (rows) => selectRows(rows),
      onDeselect: clear,
      onClick: async (row) => {
        const [crop] = await api.getCrops(Uint32Array.of(row));
        lookAt(crop.crop_id);
      },
      onHover: (row, at) => parts.hover.show(row, at, columns.get(state.colour)),
    }) };
    slots[slot].scatter.setMouseMode(byId("lasso").ariaPressed === "true" ? "lasso" : "panZoom");
  }
}

const NAMES = { umap: "UMAP", pca: "PCA" };

async function loadMap(slot) {
  if (!slots[slot]) layOut();
  const { scatter } = slots[slot];
  const turn = (slots[slot].turn = {});
  const isCurrent = () => slots[slot]?.turn === turn;
  const { representation_id: id, short } = representation(slot);
  const { method } = state;
  const name = NAMES[method];
  scatter.setTitle(`${short} — ${name}`);
  let standIn = "";
  for (let wait = 300; ; wait = Math.min(wait * 1.5, 3000)) {
    const points = await api.getPoints(id, method);
    if (!isCurrent()) return;
    if (points.rows) {
      scatter.setTitle(`${short} — ${name}`);
      scatter.setNote("");
      await put(slot, points);
      return;
    }
    const share = Math.round(100 * points.share);
    if (method === "umap" && !standIn) {
      const pca = await api.getPoints(id, "pca");
      if (!isCurrent()) return;
      if (pca.rows) {
        standIn = " PCA is shown in the meantime.";
        await put(slot, pca);
        scatter.setTitle(`${short} — ${NAMES.pca}`); // of what is shown, not of what is to come
      }
    }
    scatter.setNote(`The ${name} map is being computed, ${share} % done.${standIn}`);
    await new Promise((resolve) => setTimeout(resolve, wait));
    if (!isCurrent()) return;
  }
}

async function put(slot, points) {
  const { scatter } = slots[slot];
  slots[slot].rows = points.rows;
  if (slot === "representation") applyColours(points.rows);
  scatter.coloured = coloured;
  scatter.selected = selected;
  scatter.shown = shown;
  await scatter.setPoints(points);
}

const scatters = () => Object.values(slots).filter(Boolean).map(({ scatter }) => scatter);

async function column(name) {
  if (!columns.has(name)) columns.set(name, await api.getColumn(name));
  return columns.get(name);
}

async function recolour() {
  const { colour } = state;
  if (colour) await column(colour);
  if (state.colour !== colour) return;
  applyColours();
  await Promise.all(scatters().filter(({ plot }) => plot).map((scatter) => scatter.setColours(coloured)));
  await drawPlates();
}

/** Colours follow the crops on the first map, so that its largest categories have their own. */
function applyColours(rows = slots.representation?.rows ?? NOTHING) {
  const current = columns.get(state.colour) ?? null;
  coloured = colouring(current, rows, highlighted);
  drawLegend(byId("legend"), current, coloured, highlighted, {
    onSelect: (entry) => {
      const where = whereOf(current, entry);
      if (where) return void select(where);
      selectRows(rows.filter((row) => entry.members.has(current.values[row])));
    },
    onHighlight: (category) => {
      highlighted = category;
      recolour().catch(report);
    },
  });
}

/** Select by a SQL condition. Repeating the condition selects again, for example after a lasso. */
function select(where) {
  byId("sql").value = where;
  if (!where) return void clear();
  if (state.select === where) runSelect().catch(report);
  else change({ select: where });
}

async function runSelect() {
  const where = state.select;
  if (!where) return;
  byId("sql").value = where;
  const rows = await api.selectRows(where);
  if (state.select !== where) return;
  setSelected(rows);
}

/** Select by lasso, legend or neighbours: the address cannot hold such a selection. */
function selectRows(rows) {
  change({ select: "" });
  setSelected(rows);
}

function clear() {
  change({ select: "" });
  setSelected(NOTHING);
}

function setSelected(rows) {
  trouble("");
  selected = rows;
  const n = rows.length;
  byId("selection-count").textContent = n ? `${number(n)} selected` : "None selected";
  for (const id of ["copy-ids", "save-csv", "save-curation", "clear"]) byId(id).disabled = !n;
  const onMap = slots.representation?.rows;
  const missing = n && onMap ? n - countCommon(rows, onMap) : 0;
  say(missing ? `${number(missing)} of the selected crops have no embedding in this representation and no point on its map.` : "");
  for (const scatter of scatters()) scatter.setSelected(rows);
  if (n && state.tab === "crop") change({ tab: "montage" });
  parts.montage.setRows(rows);
  drawPlates().catch(report);
}

function countCommon(rows, others) {
  const isThere = new Uint8Array(nCrops);
  for (const row of others) isThere[row] = 1;
  return rows.reduce((sum, row) => sum + isThere[row], 0);
}

async function showOnly() {
  const where = state.only;
  if (where) byId("sql").value = where;
  const rows = where ? await api.selectRows(where) : null;
  if (state.only !== where) return;
  trouble("");
  shown = rows;
  const button = byId("show-all");
  button.hidden = !rows;
  button.title = where ? `Shown: ${where}` : "";
  byId("show-only").classList.toggle("on", Boolean(rows));
  if (rows) say(`${number(rows.length)} crops pass and are shown: ${where}`);
  await Promise.all(scatters().map((scatter) => scatter.setShown(rows)));
}

function lookAt(cropId) {
  parts.hover.hide();
  change({ crop: cropId, tab: "crop" });
}

function mark(crop, neighbours) {
  const marks = [...neighbours.map((row) => ({ row, kind: "neighbour" })), { row: crop.crop_row, kind: "crop" }];
  for (const scatter of scatters()) scatter.setMarks(marks);
}

function showTab() {
  for (const tab of TABS) {
    const isOn = tab === state.tab;
    byId(`panel-${tab}`).hidden = !isOn;
    byId(`tab-${tab}`).ariaSelected = String(isOn);
    byId(`tab-${tab}`).tabIndex = isOn ? 0 : -1;
  }
  if (state.tab === "montage" && parts.montage.isStale) parts.montage.draw();
  if (state.tab === "plates") drawPlates().catch(report);
  if (state.tab === "crop" && parts.crop.isStale) parts.crop.drawPictures();
  if (state.tab === "qc") parts.qc.load();
}

async function drawPlates() {
  if (state.tab !== "plates") return;
  const [plate, well, row, place] = await Promise.all(["plate", "well", "row", "column"].map(column));
  const colour = columns.get(state.colour);
  const isSelected = new Uint8Array(nCrops);
  for (const each of selected) isSelected[each] = 1;
  const plates = wellsOf({ plate, well, row, column: place, colour }, nCrops, isSelected, coloured);
  parts.plates.set(plates, colour, coloured, selected.length);
}

function toggleLasso() {
  const isOn = byId("lasso").ariaPressed !== "true";
  byId("lasso").ariaPressed = String(isOn);
  for (const scatter of scatters()) scatter.setMouseMode(isOn ? "lasso" : "panZoom");
  say(isOn ? "Lasso: drag around points. Press L or Escape to end it." : "");
}

function wholeMap() {
  for (const scatter of scatters()) scatter.wholeMap();
}

async function copyIds() {
  if (!selected.length) return;
  try {
    const lines = (await (await api.getFile(selected, "csv", "")).text()).split("\n").slice(1).filter(Boolean);
    await navigator.clipboard.writeText(lines.map((line) => line.split(",")[0].replaceAll('"', "")).join("\n"));
    say(`${number(lines.length)} crop ids copied to the clipboard, one on each line.`);
  } catch (error) {
    report(error);
  }
}

async function save(form, name) {
  try {
    saveFile(await api.getFile(selected, form, state.select ?? ""), name);
    const what = form === "csv" ? "CSV" : "curation; move the file into catalog/curation/";
    say(`${number(selected.length)} crops saved as ${what}.`);
  } catch (error) {
    report(error);
  }
}

function askForKey(reason) {
  const dialog = byId("key-dialog");
  byId("key-reason").textContent = reason;
  byId("key").value = "";
  dialog.showModal();
  return new Promise((resolve) => {
    byId("key-form").addEventListener("submit", () => resolve(byId("key").value.trim()), { once: true });
    dialog.addEventListener("cancel", (event) => event.preventDefault(), { once: true });
  });
}

function say(text) {
  byId("status").textContent = text || `${number(nCrops)} crops in the catalog.`;
}

function trouble(text) {
  byId("trouble").textContent = text;
  byId("trouble").hidden = !text;
}

function report(error) {
  console.error(error);
  trouble(error.message);
}
