// Colours that can be distinguished with each common colour blindness.

// Okabe and Ito 2008, without black.
export const CATEGORIES = ["#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#f0e442"];
export const OTHER = "#b9bfc5";
export const HIGHLIGHT = "#d55e00";

// Nine stops of viridis (van der Walt and Smith, matplotlib), read off at equal steps.
const VIRIDIS = ["#440154", "#472d7b", "#3b528b", "#2c728e", "#21918c", "#28ae80", "#5ec962", "#addc30", "#fde725"];

/** Viridis in `n` steps, as #rrggbb. */
export function viridis(n) {
  return Array.from({ length: n }, (_, i) => {
    const at = (i / Math.max(1, n - 1)) * (VIRIDIS.length - 1);
    const low = Math.min(Math.floor(at), VIRIDIS.length - 2);
    return mixed(VIRIDIS[low], VIRIDIS[low + 1], at - low);
  });
}

/** The colour between two, `share` of the way. */
export function mixed(from, to, share) {
  const parts = [1, 3, 5].map((i) => {
    const [a, b] = [from, to].map((colour) => parseInt(colour.slice(i, i + 2), 16));
    return Math.round(a + (b - a) * share).toString(16).padStart(2, "0");
  });
  return `#${parts.join("")}`;
}
