// SQL conditions for the service.

/** A text as a SQL literal. */
export const quoted = (text) => `'${text.replaceAll("'", "''")}'`;

/** SQL condition of an entry of the legend; "" where there is none. */
export function whereOf(column, entry) {
  if (entry.members.size !== 1) return "";
  const category = column.categories[[...entry.members][0]];
  if (column.kind !== "category" || category === "") return "";
  const isTruth = column.categories.every((each) => ["", "true", "false"].includes(each));
  if (isTruth) return `${column.name} = ${category}`;
  return `${column.name} = ${quoted(category)}`;
}
