// The view of the page, kept in the address, so that a link shows the same view to another user.

const NAMES = ["representation", "compared", "method", "colour", "only", "select", "tab", "crop"];
const listeners = [];

export const state = { method: "umap", tab: "montage" };

/** Add a function that is called with the names that changed. */
export function onChange(listener) {
  listeners.push(listener);
}

/** Set part of the state, write the address, and call the listeners. */
export function change(values) {
  const changed = Object.keys(values).filter((name) => (values[name] ?? "") !== (state[name] ?? ""));
  Object.assign(state, values);
  const query = new URLSearchParams(NAMES.filter((name) => state[name]).map((name) => [name, state[name]]));
  history.replaceState(null, "", `#${query}`);
  if (changed.length) for (const listener of listeners) listener(new Set(changed));
}

/** The state in the address; missing names are empty. */
export function readAddress() {
  const query = new URLSearchParams(location.hash.slice(1));
  return Object.fromEntries(NAMES.filter((name) => query.get(name)).map((name) => [name, query.get(name)]));
}
