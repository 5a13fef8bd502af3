// What the page shows, kept in the address: a link brings another person to the same view.

const NAMES = ["representation", "compared", "method", "colour", "only", "select", "tab", "crop"];
const listeners = [];

export const state = { method: "umap", tab: "montage" };

/** Called with the names that changed. */
export function onChange(listener) {
  listeners.push(listener);
}

/** Set some of the state, write the address, tell the listeners. */
export function change(values) {
  const changed = Object.keys(values).filter((name) => (values[name] ?? "") !== (state[name] ?? ""));
  Object.assign(state, values);
  const query = new URLSearchParams(NAMES.filter((name) => state[name]).map((name) => [name, state[name]]));
  history.replaceState(null, "", `#${query}`);
  if (changed.length) for (const listener of listeners) listener(new Set(changed));
}

/** The state of the address; a name that it lacks is empty. */
export function readAddress() {
  const query = new URLSearchParams(location.hash.slice(1));
  return Object.fromEntries(NAMES.filter((name) => query.get(name)).map((name) => [name, query.get(name)]));
}
