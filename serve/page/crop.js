// The tab of one crop: its picture, position, verdicts and nearest neighbours.

import { getCrop, getNeighbours } from "./api.js";
import { el, number } from "./elements.js";
import { drawTiles, onChannels } from "./montage.js";

const N_NEIGHBOURS = 18;

export class CropCard {
  /**
   * @param events `onPick(crop)`, `onNeighbours(rows)` when neighbours are known, `onSelect(rows)`, `onSite(crop)`.
   */
  constructor(box, events) {
    this.box = box;
    this.events = events;
    box.append(el("p", { className: "empty" }, "Click a point or a crop to see it here, with its nearest neighbours."));
    onChannels(() => this.drawPictures());
  }

  async set(cropId, representation) {
    const turn = (this.turn = {});
    this.cropId = cropId;
    if (!cropId) {
      this.box.replaceChildren(el("p", { className: "empty" },
        "Click a point or a crop to see it here, with its nearest neighbours."));
      return;
    }
    this.crop = this.hits = null;
    this.box.classList.add("waiting");
    try {
      const crop = await getCrop(cropId);
      if (turn !== this.turn) return;
      this.crop = crop;
      this.drawCard();
      this.events.onNeighbours(crop, []);
      const hits = await getNeighbours(representation.representation_id, cropId, N_NEIGHBOURS).catch((error) => error);
      if (turn !== this.turn) return;
      if (hits instanceof Error) return void this.near.replaceChildren(el("p", { className: "empty" }, hits.message));
      this.hits = hits;
      this.title.textContent = `Nearest in ${representation.short}`;
      this.events.onNeighbours(crop, hits.map((hit) => hit.crop_row));
      this.selectHits.disabled = false;
    } catch (error) {
      if (turn === this.turn) this.box.replaceChildren(el("p", { className: "empty" }, error.message));
    } finally {
      if (turn === this.turn) this.box.classList.remove("waiting");
    }
    await this.drawPictures();
  }

  drawCard() {
    const { crop } = this;
    this.picture = el("div", { className: "tiles large" });
    const rows = [
      ["Where", `${crop.plate} ${crop.well}, site ${crop.site}, y ${crop.y}, x ${crop.x}, ${crop.size} px`],
      ["Screen", [crop.screen, crop.batch && `batch ${crop.batch}`].filter(Boolean).join(", ")],
      ["Perturbation", crop.perturbation],
      ["Gene", crop.gene === crop.perturbation ? "" : crop.gene],
      ["Pathway", crop.pathway],
      ["Compound", [crop.compound, crop.dose !== null && `dose ${number(crop.dose)}`].filter(Boolean).join(", ")],
      ["Control", crop.control],
      ["Foreground", crop.foreground_share === null ? "" : `${Math.round(100 * crop.foreground_share)} % of the crop`],
      ["Crop id", crop.crop_id],
    ].filter(([, text]) => text);
    const facts = el("dl", { className: "facts" },
      ...rows.flatMap(([name, text]) => [el("dt", {}, name), el("dd", {}, text)]));
    const site = el("button", { type: "button" }, "Select its site");
    site.addEventListener("click", () => this.events.onSite(crop));
    this.selectHits = el("button", { type: "button", disabled: true }, "Select neighbours");
    this.selectHits.title = "The crop and its neighbours (N)";
    this.selectHits.addEventListener("click", () => this.selectNeighbours());
    this.title = el("h3", {}, "Nearest neighbours");
    this.near = el("div", { className: "tiles" });
    this.box.replaceChildren(
      el("div", { className: "card" }, this.picture, facts), el("div", { className: "bar" }, site, this.selectHits),
      this.title, this.near, ...verdicts(crop));
  }

  /** Select the crop and its neighbours; does nothing until they are loaded. */
  selectNeighbours() {
    if (!this.crop || !this.hits) return;
    this.events.onSelect(Uint32Array.from([this.crop.crop_row, ...this.hits.map((hit) => hit.crop_row)]).sort());
  }

  async drawPictures() {
    if (!this.crop || this.box.hidden) return (this.isStale = true);
    this.isStale = false;
    const { onPick } = this.events;
    const turn = this.turn;
    try {
      // One picture of the crop and its neighbours has one contrast, so that they can be compared.
      const crops = [this.crop, ...(this.hits ?? [])];
      const tiles = el("div", {});
      await drawTiles(tiles, crops, { onPick, caption: (crop) => crop.similarity?.toFixed(3) ?? "" });
      if (turn !== this.turn) return false;
      const [own, ...near] = tiles.children;
      this.picture.replaceChildren(own);
      this.near.replaceChildren(...near);
    } catch (error) {
      if (turn === this.turn) this.picture.replaceChildren(el("p", { className: "empty" }, error.message));
    }
    return true;
  }
}

function verdicts(crop) {
  const failed = crop.verdicts.filter((verdict) => !verdict.is_pass);
  const n = crop.verdicts.length;
  if (!n) return [el("h3", {}, "QC"), el("p", { className: "empty" }, "Its site was not judged.")];
  if (!failed.length) return [el("h3", {}, "QC"), el("p", {}, `Its site and well passed all ${n} checks.`)];
  return [
    el("h3", {}, `QC: failed ${failed.length} of ${n} checks`),
    el("table", { className: "verdicts" },
      el("thead", {}, el("tr", {}, ...["Rule", "Of", "Channel", "Value", "Limit"].map((text) => el("th", {}, text)))),
      el("tbody", {}, ...failed.map((verdict) => el("tr", {}, el("td", {}, verdict.rule),
        el("td", {}, verdict.level || "site"), el("td", {}, verdict.channel || "all"),
        el("td", { className: "n" }, number(verdict.value)), el("td", { className: "n" }, number(verdict.threshold)))))),
  ];
}
