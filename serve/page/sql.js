// Conditions that the service understands.

/** A text as SQL writes it. */
export const quoted = (text) => `'${text.replaceAll("'", "''")}'`;

/** The condition that an entry of the legend stands for; "" where there is none. */
export function conditionOf(column, entry) {
  if (entry.members.size !== 1) return "";
  const category = column.categories[[...entry.members][0]];
  if (column.kind !== "category" || category === "") return "";
  const isTruth = column.categories.every((each) => ["", "true", "false"].includes(each));
  if (isTruth) return `${column.name} = ${category}`;
  return `${column.name} = ${quoted(category)}`;
}
