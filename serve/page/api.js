// Requests to the service. Asks the user for a key where the service needs one, and keeps it for this tab.

const KEY = "cytolake-key";
let askForKey = async () => "";
let rowsKey = "";

/** Set the function that asks the user for a key: called with the reason, returns a promise of the key. */
export function onKeyWanted(ask) {
  askForKey = ask;
}

export class ServiceError extends Error {
  constructor(status, detail) {
    super(detail);
    this.status = status;
  }
}

let asking = null;

async function request(path, options = {}) {
  for (;;) {
    const key = sessionStorage.getItem(KEY);
    const headers = { ...options.headers, ...(key ? { Authorization: `Bearer ${key}` } : {}) };
    const answer = await fetch(path, { ...options, headers, cache: "no-store" });
    if (answer.status === 401) {
      const problem = await answer.json().catch(() => ({}));
      // Several requests may fail at once; one dialog serves all.
      asking ??= askForKey(problem.detail ?? "").finally(() => (asking = null));
      sessionStorage.setItem(KEY, await asking);
      continue;
    }
    if (!answer.ok) {
      const problem = await answer.json().catch(() => ({}));
      throw new ServiceError(answer.status, problem.detail ?? `${path}: status ${answer.status}`);
    }
    const seen = answer.headers.get("X-Rows-Key");
    if (seen && rowsKey && seen !== rowsKey) {
      throw new ServiceError(409, "Crops were added to the catalog. Load the page again to see them.");
    }
    rowsKey = seen ?? rowsKey;
    return answer;
  }
}

function post(path, body) {
  return request(path, {
    method: "POST", body: JSON.stringify(body), headers: { "Content-Type": "application/json" },
  });
}

export const getRepresentations = async () => (await request("../v1/explore/representations")).json();
export const getColumns = async () => (await request("../v1/explore/columns")).json();
export const getQc = async () => (await request("../v1/explore/qc")).json();
export const getCrop = async (cropId) => (await request(`../v1/crops/${encodeURIComponent(cropId)}`)).json();

/** `{rows, x, y}`, or `{share}` while the map is computed. */
export async function getPoints(representationId, method) {
  const query = new URLSearchParams({ representation_id: representationId, method });
  const answer = await request(`../v1/explore/points?${query}`);
  if (answer.status === 202) return { share: (await answer.json()).share };
  const bytes = await answer.arrayBuffer();
  const n = bytes.byteLength / 12;
  return {
    rows: new Uint32Array(bytes, 0, n), x: new Float32Array(bytes, 4 * n, n), y: new Float32Array(bytes, 8 * n, n),
  };
}

const ARRAYS = { uint8: Uint8Array, uint16: Uint16Array, uint32: Uint32Array, float32: Float32Array };

/** `{name, kind, values, categories}`: one value, or index into `categories`, for each crop of the catalog. */
export async function getColumn(name) {
  const bytes = await (await request(`../v1/explore/columns/${encodeURIComponent(name)}`)).arrayBuffer();
  const length = new DataView(bytes).getUint32(0, true);
  const header = JSON.parse(new TextDecoder().decode(new Uint8Array(bytes, 4, length)));
  return { name, ...header, values: new ARRAYS[header.dtype](bytes, 4 + length, header.n) };
}

/** Rows of the crops that pass a SQL condition. */
export async function selectRows(where) {
  return new Uint32Array(await (await post("../v1/explore/select", { where })).arrayBuffer());
}

async function postRows(rows, form, where = "") {
  const query = new URLSearchParams({ key: rowsKey, form, where });
  return request(`../v1/explore/crops?${query}`, {
    method: "POST", body: rows, headers: { "Content-Type": "application/octet-stream" },
  });
}

/** Columns of at most 2,000 crops. */
export const getCrops = async (rows) => (await (await postRows(rows, "json")).json()).crops;
/** The crops as a file: `csv` or `curation`. */
export const getFile = async (rows, form, where) => (await postRows(rows, form, where)).blob();

export const getNeighbours = async (representationId, cropId, k) =>
  (await (await post("../v1/explore/neighbours", { representation_id: representationId, crop_id: cropId, k })).json())
    .hits;

/** One picture of at most 200 crops: `{image, tile, columns, channels}`. */
export async function getMontage(cropIds, channels) {
  const answer = await post("../v1/explore/montage", { crop_ids: cropIds, channels });
  return {
    image: await createImageBitmap(await answer.blob()),
    tile: Number(answer.headers.get("X-Tile")),
    columns: Number(answer.headers.get("X-Columns")),
    channels: JSON.parse(answer.headers.get("X-Channels")),
  };
}
