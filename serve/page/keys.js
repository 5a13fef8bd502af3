// Keyboard shortcuts, and the list of them under "?".

import { byId, el } from "./elements.js";

const HELP = [
  ["/", "go to the SQL condition"],
  ["Enter", "in the condition: select the crops that pass; with Shift: show only them"],
  ["L", "lasso on and off; also hold Shift and drag"],
  ["Escape", "end the lasso, or clear the selection"],
  ["1 2 3 4", "crops, plates, one crop, QC"],
  ["N", "select the crop that is looked at and its nearest neighbours"],
  ["Y", "copy the ids of the selected crops"],
  ["R", "next representation; with Shift: the one before"],
  ["U", "UMAP or PCA"],
  ["Arrows, + −", "on a map: move, zoom. On crops and plates: go from one to the next"],
  ["0", "the whole map"],
  ["?", "this list"],
  ["Mouse", "drag moves the map, wheel zooms, click shows a crop and its neighbours, double click clears"],
];

/** @param actions what each key does; a key is as in `KeyboardEvent.key`. */
export function listenToKeys(actions) {
  byId("shortcuts").append(...HELP.flatMap(([keys, text]) => [el("dt", {}, el("kbd", {}, keys)), el("dd", {}, text)]));
  const help = byId("help-dialog");
  const toggle = () => (help.open ? help.close() : help.showModal());
  byId("help-button").addEventListener("click", toggle);
  byId("close-help").addEventListener("click", () => help.close());
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.defaultPrevented) return;
    const isTyping = event.target.matches?.("input:not([type=checkbox]), textarea, select");
    if (isTyping) {
      if (event.key === "Escape") event.target.blur();
      return;
    }
    if (document.querySelector("dialog[open]") && event.key !== "?") return;
    const action = event.key === "?" ? toggle : actions[event.key] ?? actions[event.key.toLowerCase()];
    if (!action) return;
    event.preventDefault();
    action(event);
  });
}
