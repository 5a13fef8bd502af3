// Shows the crop under the pointer: the value of the colour immediately, the picture after a delay.

import { getCrops } from "./api.js";
import { el, number } from "./elements.js";
import { drawTiles } from "./montage.js";

const DELAY_MS = 250;

export class Hover {
  constructor() {
    this.box = el("div", { className: "hover", hidden: true, ariaHidden: "true" });
    document.body.append(this.box);
  }

  hide() {
    clearTimeout(this.timer);
    this.turn = null;
    this.box.hidden = true;
  }

  /** @param row row of the crop, null hides; @param at position on the page; @param column that colours the map. */
  show(row, at, column) {
    this.hide();
    if (row === null) return;
    const turn = (this.turn = {});
    const text = el("div", {});
    if (column) {
      const value = column.values[row];
      text.append(el("strong", {}, column.kind === "number" ? number(value) : column.categories[value] || "(none)"));
    }
    const picture = el("div", { className: "tiles" });
    this.box.replaceChildren(picture, text);
    this.box.hidden = !column;
    this.place(at);
    this.timer = setTimeout(async () => {
      try {
        const [crop] = await getCrops(Uint32Array.of(row));
        if (turn !== this.turn) return;
        text.append(el("div", {}, `${crop.plate} ${crop.well}, site ${crop.site}`));
        if (crop.qc_reasons) text.append(el("div", { className: "failed" }, `QC: ${crop.qc_reasons}`));
        this.box.hidden = false;
        await drawTiles(picture, [crop], { onPick: () => {} });
      } catch (error) {
        if (turn === this.turn) text.append(el("div", {}, error.message.slice(0, 120)));
      }
      if (turn === this.turn) this.place(at);
    }, DELAY_MS);
  }

  place({ x, y }) {
    const { width, height } = this.box.getBoundingClientRect();
    const left = x + 14 + width > innerWidth ? x - 14 - width : x + 14;
    const top = Math.max(4, Math.min(y - height / 2, innerHeight - height - 4));
    this.box.style.transform = `translate(${left}px, ${top}px)`;
  }
}
