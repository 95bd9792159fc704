// Up to four entries side by side. Each entry's figures are a script of this site that calls quenchEntry.
"use strict";
(() => {
  const place = document.getElementById("compare");
  if (!place) return;
  const { entries: folder, headline } = place.dataset;
  const quantities = place.dataset.quantities.split("|");
  const shown = document.getElementById("chosen");
  const selects = [...place.querySelectorAll("select")];
  const loaded = new Map(), asked = new Set();

  const make = (name, attributes, ...children) => {
    const [kind, svg] = name.split(":").reverse();
    const made = svg ? document.createElementNS("http://www.w3.org/2000/svg", kind) : document.createElement(kind);
    for (const key in attributes) made.setAttribute(key, attributes[key]);
    made.append(...children);
    return made;
  };
  const number = (value, sign = "") => Math.abs(value) < 0.005 ? "0.00" : (value > 0 ? sign : "") + value.toFixed(2);
  const ends = ([, low, high]) => low === null ? "" : ` [${number(low)}, ${number(high)}]`;

  // Two entries' differences stand in the file of the one that the board puts first.
  const gapsOf = (first, second) => {
    const there = first.pairs[second.key], found = there || second.pairs[first.key];
    return new Map((found?.gaps || []).map(([bits, quantity, value, low, high, claimed, few]) => {
      const range = there || low === null ? [value, low, high] : [-value, -high, -low];
      return [bits + "/" + quantity, { range, claimed, few }];
    }));
  };

  const curves = (entries, quantity) => {
    const widths = entries[0].widths.map((at) => at.bits);
    const middle = (bits) => 34 + 312 * (widths.indexOf(bits) + 0.5) / widths.length;
    const y = (value) => 16 + 186 * (1.3 - Math.min(Math.max(value, -0.25), 1.3)) / 1.55;
    const label = (x, height, text) => make("svg:text", { x, y: height, "text-anchor": "middle" }, text);
    const svg = make("svg:svg", { viewBox: "0 0 360 230", role: "img", "aria-label": quantities[quantity] + " over bit widths" });
    for (const value of [0, 0.5, 1]) svg.append(make("svg:line", { class: "grid", x1: 34, x2: 346, y1: y(value), y2: y(value) }), label(20, y(value) + 4, value));
    for (const bits of widths) svg.append(label(middle(bits), 222, bits + " bit"));
    entries.forEach((entry, index) => {
      const colour = "c" + (index + 1), known = entry.widths.filter((at) => at.values[quantity][0] !== null);
      const x = (at) => middle(at.bits) + 5 * index - 2.5 * (entries.length - 1);
      svg.append(make("svg:polyline", { class: "line " + colour, points: known.map((at) => x(at) + "," + y(at.values[quantity][0])).join(" ") }));
      for (const at of known) {
        const [value, low, high] = at.values[quantity];
        if (low !== null) svg.append(make("svg:line", { class: "span " + colour, x1: x(at), x2: x(at), y1: y(low), y2: y(high) }));
        svg.append(make("svg:circle", { class: colour, cx: x(at), cy: y(value), r: 3.5 }));
      }
    });
    return make("figure", { class: "chart" }, make("figcaption", {}, make("h3", {}, quantities[quantity])), svg);
  };

  const table = (entries) => {
    const body = make("tbody");
    const gaps = entries.map((entry) => gapsOf(entries[0], entry));
    const row = (name, cells, kind = "") => body.append(make("tr", { class: kind }, make("th", { scope: "row" }, name), ...cells.map((parts) => make("td", { class: "n" }, ...parts))));
    entries[0].widths.forEach(({ bits }, place) => {
      const at = entries.map((entry) => entry.widths[place]);
      row(bits + " bit: verdict", at.map((width) => [make("span", { class: "badge v-" + width.verdict.replace(" ", "-") }, width.symbol + " " + width.verdict), make("small", {}, width.backend)]), "new-tier");
      quantities.forEach((quantity, index) => row(quantity, at.map(({ values }, column) => {
        const value = values[index], gap = gaps[column].get(bits + "/" + index);
        if (value[0] === null) return ["–"];
        const parts = [number(value[0]), make("small", {}, ends(value))];
        if (gap) parts.push(make(gap.claimed ? "strong" : "span", { class: "gap" }, number(gap.range[0], "+") + (gap.few ? "*" : "") + ends(gap.range) + (gap.claimed ? " apart" : " not apart")));
        return parts;
      })));
    });
    const head = entries.map((entry, index) => make("th", { scope: "col", class: "n" }, make("span", { class: "k" + (index + 1), "aria-hidden": "true" }, "● "), make("a", { href: entry.href }, entry.name), make("span", { class: "sub" }, entry.about)));
    return make("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Figures of the chosen entries" },
      make("table", { class: "side" }, make("thead", {}, make("tr", {}, make("th", { scope: "col" }, "Worst backend"), ...head)), body));
  };

  const draw = () => {
    const chosen = selects.map((select) => select.value).filter(Boolean), entries = chosen.map((key) => loaded.get(key));
    if (entries.includes(undefined)) return;
    if (entries.length < 2) { shown.replaceChildren(make("p", { class: "empty" }, "Choose two entries or more.")); return; }
    const said = entries.flatMap((one, index) => entries.slice(index + 1).map((two) =>
      (one.pairs[two.key] || two.pairs[one.key])?.says || `${one.name} and ${two.name} have no paired figures at ${headline} bit.`));
    shown.replaceChildren(
      make("ul", {}, ...said.map((text) => make("li", {}, text))),
      make("div", { class: "overlay" }, ...[...place.dataset.curves].map((quantity) => curves(entries, quantity))),
      table(entries),
      make("p", { class: "sub" }, `Below a figure: ${entries[0].name} minus that entry. Every single quantizer: `, make("code", {}, `quench compare ${entries.map((entry) => entry.name).join(" ")} --at ${headline}`)));
  };

  window.quenchEntry = (entry) => { loaded.set(entry.key, entry); draw(); };
  const elsewhere = (select, value) => value && selects.some((other) => other !== select && other.value === value);
  const load = () => {
    for (const select of selects) {
      const { value } = select;
      // What stands elsewhere can't be chosen again: arrow keys pass over it.
      for (const option of select.options) option.disabled = elsewhere(select, option.value);
      if (!value || asked.has(value)) continue;
      asked.add(value);
      document.head.append(make("script", { src: folder + encodeURIComponent(value) + ".js" }));
    }
    draw();
  };
  const wanted = new URLSearchParams(location.hash.includes("=") ? location.hash.slice(1) : location.search);
  for (const select of selects) {
    select.value = wanted.get(select.dataset.entry) || "";
    if (select.selectedIndex < 0 || elsewhere(select, select.value)) select.value = "";
    select.onchange = () => {
      const next = new URLSearchParams(selects.filter((one) => one.value).map((one) => [one.dataset.entry, one.value]));
      // Pages that are open as files may change their fragment only.
      try { history.replaceState(null, "", (location.protocol === "file:" ? "#" : location.pathname + "?") + next); } catch { /* nor that everywhere */ }
      load();
    };
  }
  place.hidden = false;
  load();
})();
