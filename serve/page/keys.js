// Keyboard shortcuts, and their list under "?".

import { byId, el } from "./elements.js";

const HELP = [
  ["/", "go to the SQL condition"],
  ["Enter", "in the SQL condition: select the crops that pass; with Shift: show only these"],
  ["L", "lasso on or off; or hold Shift and drag"],
  ["Escape", "end the lasso, or clear the selection"],
  ["1 2 3 4", "tabs: crops, plates, one crop, QC"],
  ["N", "select the crop of the tab One crop and its nearest neighbours"],
  ["Y", "copy the ids of the selected crops"],
  ["R", "next representation; with Shift: previous representation"],
  ["U", "switch between UMAP and PCA"],
  ["Arrows, + −", "map: move and zoom; crops and plates: next one"],
  ["0", "show the whole map"],
  ["?", "show or hide this list"],
  ["Mouse", "drag to move the map, turn the wheel to zoom, click to show a crop, double click to clear the selection"],
];

/** @param actions function of each key, by `KeyboardEvent.key`. */
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
