// The tab of quality control: failures of each rule, and the failed verdicts.

import { getQc } from "./api.js";
import { el, number } from "./elements.js";
import { quoted } from "./sql.js";

export class QcView {
  /** @param onSelect called with a SQL condition. */
  constructor(box, onSelect) {
    this.box = box;
    this.onSelect = onSelect;
  }

  async load() {
    if (this.qc) return;
    this.box.replaceChildren(el("p", { className: "empty" }, "Reading verdicts…"));
    try {
      this.qc = await getQc();
      this.draw();
    } catch (error) {
      this.box.replaceChildren(el("p", { className: "empty" }, error.message));
    }
  }

  draw() {
    const { qc } = this;
    if (!qc.qc_ids.length) {
      const text = "No site has been judged yet. Run `cytolake curate`, which judges the sites.";
      return void this.box.replaceChildren(el("p", { className: "empty" }, text));
    }
    const bySite = qc.rules.filter((rule) => rule.level === "site" && rule.n_failed);
    const all = el("button", { type: "button", disabled: !bySite.length }, "Select all failed");
    all.addEventListener("click", () => this.onSelect("NOT qc_pass"));
    const passed = el("button", { type: "button" }, "Select passed");
    passed.addEventListener("click", () => this.onSelect("qc_pass"));
    const rules = qc.rules.slice().sort((a, b) => b.n_failed / b.n_judged - a.n_failed / a.n_judged || a.rule.localeCompare(b.rule));
    this.box.replaceChildren(
      el("div", { className: "bar" }, all, passed),
      el("h3", {}, "Rules"),
      el("table", { className: "verdicts" },
        el("thead", {}, el("tr", {}, ...["Rule", "Of", "Failed", "Judged"].map((text) => el("th", {}, text)))),
        el("tbody", {}, ...rules.map((rule) => this.rule(rule)))),
      el("h3", {}, qc.n_failed > qc.failed.length
        ? `Failed verdicts, ${number(qc.failed.length)} of ${number(qc.n_failed)}` : `Failed verdicts, ${qc.n_failed}`),
      el("table", { className: "verdicts" },
        el("thead", {}, el("tr", {}, ...["Place", "Rule", "Channel", "Value", "Limit"].map((text) => el("th", {}, text)))),
        el("tbody", {}, ...qc.failed.map((verdict) => this.verdict(verdict)))));
  }

  rule(rule) {
    const name = rule.level === "site" && rule.n_failed ? this.link(rule.rule, siteRule(rule.rule)) : rule.rule;
    return el("tr", { title: rule.says }, el("td", {}, name), el("td", {}, rule.level),
      el("td", { className: rule.n_failed ? "n failed" : "n" }, number(rule.n_failed)),
      el("td", { className: "n" }, number(rule.n_judged)));
  }

  verdict({ level, plate, well, site, rule, channel, value, threshold }) {
    const parts = [["plate", plate], ["well", well], ["site", site]].filter(([, text]) => text);
    const where = parts.map(([name, text]) => `${name} = ${quoted(text)}`).join(" AND ");
    const place = [plate, well, site && `site ${site}`].filter(Boolean).join(" ") || level;
    return el("tr", {}, el("td", {}, where ? this.link(place, where) : place), el("td", {}, rule),
      el("td", {}, channel || "all"), el("td", { className: "n" }, number(value)),
      el("td", { className: "n" }, number(threshold)));
  }

  link(text, where) {
    const button = el("button", { type: "button", className: "link", title: where }, text);
    button.addEventListener("click", () => this.onSelect(where));
    return button;
  }
}

/** SQL condition for sites that failed a rule; `defocus` must not match a rule whose name contains that word. */
function siteRule(rule) {
  // "_" matches any character in LIKE, but no two rules differ by that alone. Channels follow in brackets.
  const inside = ["", " (%", "; %"].flatMap((after) => ["", "%; "].map((before) => `qc_reasons LIKE ${quoted(before + rule + after)}`));
  return inside.join(" OR ");
}
