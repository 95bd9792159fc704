// Every number is on the page without it.
// A classic script, not a module: browsers refuse modules from file:// addresses.
"use strict";
(() => {
  const one = (selector) => document.querySelector(selector);
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];
  const on = (node, kind, react) => node.addEventListener(kind, react);
  const state = new URLSearchParams(location.hash.slice(1).includes("=") ? location.hash.slice(1) : "");

  const remember = (name, value) => {
    if (value) state.set(name, value); else state.delete(name);
    try { history.replaceState(null, "", state.size ? "#" + state : location.pathname); } catch { /* some file:// pages may not */ }
  };

  // Theme: the system's, until a reader chooses another.
  const themes = ["auto", "light", "dark"];
  const button = one(".theme"), look = document.documentElement.dataset;
  const setTheme = (number) => {
    const name = themes[number] || "auto";
    if (name === "auto") delete look.theme; else look.theme = name;
    try { localStorage.setItem("quench-theme", name); } catch { /* private windows may not */ }
    button.textContent = "Theme: " + name;
  };
  let stored = "auto";
  try { stored = localStorage.getItem("quench-theme"); } catch { /* nor read */ }
  setTheme(themes.indexOf(stored));
  button.hidden = false;
  on(button, "click", () => setTheme((themes.indexOf(look.theme || "auto") + 1) % 3));

  // One bit width at a time.
  const widths = all("section.width");
  const showWidth = (bits) => {
    for (const section of widths) section.hidden = section.dataset.bits !== bits;
    for (const link of all(".switch a")) {
      if (link.dataset.bits === bits) link.setAttribute("aria-current", "true"); else link.removeAttribute("aria-current");
    }
  };
  if (widths.length) {
    const first = widths.find((section) => "first" in section.dataset) || widths[0];
    const asked = state.get("bits") || location.hash.replace("#at-", "");
    showWidth(widths.some((section) => section.dataset.bits === asked) ? asked : first.dataset.bits);
    for (const link of all(".switch a")) {
      on(link, "click", (event) => {
        event.preventDefault();
        showWidth(link.dataset.bits);
        remember("bits", link.dataset.bits);
        apply();
      });
    }
  }

  // Further columns, whose cells come from elsewhere on the page: the entry at each width, and under one backend.
  const addColumn = (name, title, fill) => {
    for (const table of all(".width table.sortable")) {
      for (const row of [table.tHead.rows[0], ...table.tBodies[0].rows]) {
        const cell = document.createElement(row.dataset.entry ? "td" : "th");
        cell.className = "n";
        cell.dataset.col = name;
        if (row.dataset.entry) fill(cell, row.dataset.entry);
        else Object.assign(Object.assign(cell, { scope: "col", textContent: title }).dataset, { sort: "number", key: name });
        row.append(cell);
      }
    }
  };
  for (const section of widths) {
    const rows = new Map(all("tr[data-entry]", section).map((row) => [row.dataset.entry, row.dataset]));
    addColumn("b" + section.dataset.bits, section.dataset.bits + " bit", (cell, entry) => {
      cell.dataset.v = rows.get(entry)?.remaining || "";
      cell.textContent = rows.get(entry)?.says || "–";
    });
  }
  addColumn("under", "", () => {});

  // Sorting: a button in each header; tables of one page with the same columns are sorted alike.
  const valueOf = (cell) => cell.dataset.v ?? cell.textContent.trim();
  const sortBy = (table, header, direction) => {
    const numeric = header.dataset.sort === "number", sign = direction === "descending" ? -1 : 1;
    const body = table.tBodies[0], empty = (key) => key === "" || key === "–";
    const rows = [...body.rows].sort((first, second) => {
      const [here, there] = [first, second].map((row) => valueOf(row.cells[header.cellIndex]));
      if (empty(here) || empty(there)) return empty(here) - empty(there);
      return sign * (numeric ? here - there : here.localeCompare(there, "en", { numeric: true }));
    });
    for (const other of all("th[aria-sort]", table.tHead)) other.removeAttribute("aria-sort");
    header.setAttribute("aria-sort", direction);
    body.append(...rows);
    for (const row of rows) row.classList.remove("new-tier");
  };
  const sortAlike = (key, direction) => {
    for (const header of all("table.sortable th[data-key]")) if (header.dataset.key === key) sortBy(header.closest("table"), header, direction);
  };
  for (const header of all("table.sortable th[data-sort]")) {
    const control = document.createElement("button");
    control.append(...header.childNodes);
    header.append(control);
    on(control, "click", () => {
      const direction = header.getAttribute("aria-sort") === "ascending" ? "descending" : "ascending", { key } = header.dataset;
      if (!key) return sortBy(header.closest("table"), header, direction);
      sortAlike(key, direction);
      remember("sort", (direction === "ascending" ? "" : "-") + key);
    });
  }

  // Columns: what is checked is shown; one more takes its cells from the table of every backend.
  const columns = all(".columns input"), backend = one(".backend");
  const checked = () => columns.filter((box) => box.checked).map((box) => box.value).join(" "), usual = checked();
  const showColumns = () => {
    const wanted = [...checked().split(" "), backend.value && "under"];
    for (const cell of all(".board [data-col]")) cell.hidden = !wanted.includes(cell.dataset.col);
  };
  const showBackend = () => {
    showColumns();
    const index = all(".matrix [data-quantizer]").findIndex((head) => head.dataset.quantizer === backend.value) + 1;
    const found = new Map(all(".matrix tbody tr").map((row) => [row.dataset.entry, row.cells[index]]));
    for (const cell of all("[data-col=under]")) {
      if (cell.tagName === "TH") { (cell.querySelector("button") || cell).textContent = backend.value; continue; }
      const from = found.get(cell.parentNode.dataset.entry);
      cell.dataset.v = index ? from.dataset.v : "";
      cell.replaceChildren(...(index ? from.cloneNode(true).childNodes : []));
    }
  };

  // Filters.
  const search = one(".search"), eligible = one(".eligible");
  const filters = all("select[data-filter]");
  const apply = () => {
    const wanted = (search?.value || "").trim().toLowerCase();
    let shown = 0, total = 0;
    for (const row of all("table.board tbody tr")) {
      const fits = (!wanted || (row.dataset.entry ? row.cells[0] : row).textContent.toLowerCase().includes(wanted))
        && filters.every((filter) => !filter.value || row.dataset[filter.dataset.filter] === filter.value)
        && !(eligible?.checked && row.closest(".unranked"));
      row.hidden = !fits;
      if (row.closest("section.width[hidden]")) continue;
      total += 1;
      shown += fits;
    }
    for (const section of all("section.work")) section.hidden = !section.querySelector("tbody tr:not([hidden])");
    for (const label of all(".count")) label.textContent = shown === total ? "" : shown + " of " + total + " shown";
  };
  for (const [control, name, react] of [[search, "q"], [backend, "backend", showBackend], ...filters.map((filter) => [filter, filter.dataset.filter])]) {
    if (!control) continue;
    control.value = state.get(name) || "";
    if (control.selectedIndex < 0) control.value = "";
    on(control, "input", () => { remember(name, control.value); react?.(); apply(); });
  }
  if (eligible) {
    eligible.checked = state.has("ranked");
    on(eligible, "change", () => { remember("ranked", eligible.checked && "1"); apply(); });
  }
  if (columns.length) {
    if (state.has("columns")) for (const box of columns) box.checked = state.get("columns").split(" ").includes(box.value);
    for (const box of columns) on(box, "change", () => { remember("columns", checked() === usual ? "" : checked() || "none"); showColumns(); });
    showBackend();
  }
  if (state.has("sort")) sortAlike(state.get("sort").replace("-", ""), state.get("sort").startsWith("-") ? "descending" : "ascending");
  for (const tools of all(".tools")) tools.hidden = false;
  if (search) apply();

  // Entries that are picked go to the page that compares them, four at most.
  const compare = one("a.compare"), picks = all("input.pick"), page = compare?.getAttribute("href");
  let picked = [];
  for (const box of picks) {
    box.hidden = false;
    on(box, "change", () => {
      picked = picked.filter((key) => key !== box.value).concat(box.checked ? box.value : []).slice(-4);
      for (const other of picks) other.checked = picked.includes(other.value);
      compare.href = page + "?" + new URLSearchParams(picked.map((key, index) => ["abcd"[index], key]));
      compare.textContent = "Compare " + picked.length;
    });
  }

  // A row in the table brings its line in the charts forward.
  const highlight = (colour) => {
    for (const chart of all("[data-chart]")) {
      if (colour) chart.dataset.highlight = colour; else delete chart.dataset.highlight;
    }
  };
  for (const row of all("tr[data-colour]")) {
    on(row, "mouseenter", () => highlight(row.dataset.colour));
    on(row, "focusin", () => highlight(row.dataset.colour));
    on(row, "mouseleave", () => highlight());
    on(row, "focusout", () => highlight());
  }

  for (const control of all("[data-copy]")) {
    if (!navigator.clipboard) continue;
    control.hidden = false;
    on(control, "click", async () => {
      await navigator.clipboard.writeText(document.getElementById(control.dataset.copy).textContent);
      control.textContent = "Copied";
    });
  }
})();
