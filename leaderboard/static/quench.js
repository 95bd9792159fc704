// Sorting, filtering, one width at a time, theme and copying. Every number is on the page without it.
// A classic script, not a module: browsers refuse modules from file:// addresses.
"use strict";
(() => {
  const all = (selector, root = document) => Array.from(root.querySelectorAll(selector));
  const state = new URLSearchParams(location.hash.slice(1).includes("=") ? location.hash.slice(1) : "");

  const remember = (name, value) => {
    if (value) state.set(name, value); else state.delete(name);
    try { history.replaceState(null, "", state.size ? "#" + state : location.pathname); } catch { /* some file:// pages may not */ }
  };

  // Theme: the system's, until a reader chooses another.
  const themes = ["auto", "light", "dark"];
  const button = document.querySelector(".theme");
  const stored = () => { try { return localStorage.getItem("quench-theme"); } catch { return null; } };
  const setTheme = (name) => {
    if (name === "auto") delete document.documentElement.dataset.theme; else document.documentElement.dataset.theme = name;
    try { localStorage.setItem("quench-theme", name); } catch { /* private windows may not */ }
    if (button) button.textContent = "Theme: " + name;
  };
  setTheme(themes.includes(stored()) ? stored() : "auto");
  if (button) {
    button.hidden = false;
    button.addEventListener("click", () => setTheme(themes[(themes.indexOf(document.documentElement.dataset.theme || "auto") + 1) % themes.length]));
  }

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
    const asked = state.get("bits") || (location.hash.match(/^#at-(\d+)$/) || [])[1];
    showWidth(widths.some((section) => section.dataset.bits === asked) ? asked : first.dataset.bits);
    for (const link of all(".switch a")) {
      link.addEventListener("click", (event) => {
        event.preventDefault();
        showWidth(link.dataset.bits);
        remember("bits", link.dataset.bits);
        apply();
      });
    }
  }

  // Sorting: a button in each header.
  const valueOf = (row, index) => {
    const cell = row.cells[index];
    return "v" in cell.dataset ? cell.dataset.v : cell.textContent.trim();
  };
  const sortBy = (table, header, direction) => {
    const index = header.cellIndex;
    const numeric = header.dataset.sort === "number";
    const sign = direction === "descending" ? -1 : 1;
    const body = table.tBodies[0];
    const keyed = Array.from(body.rows, (row, position) => ({ row, position, key: valueOf(row, index) }));
    const empty = (key) => key === "" || key === "–";
    keyed.sort((one, two) => {
      if (empty(one.key) || empty(two.key)) return empty(one.key) - empty(two.key) || one.position - two.position;
      const order = numeric ? Number(one.key) - Number(two.key) : one.key.localeCompare(two.key, "en", { numeric: true });
      return sign * order || one.position - two.position;
    });
    for (const other of all("th[aria-sort]", table.tHead)) other.removeAttribute("aria-sort");
    header.setAttribute("aria-sort", direction);
    body.append(...keyed.map((item) => item.row));
    for (const row of body.rows) row.classList.remove("new-tier");
  };
  for (const table of all("table.sortable")) {
    for (const header of all("th[data-sort]", table.tHead)) {
      const control = document.createElement("button");
      control.type = "button";
      control.append(...header.childNodes);
      header.append(control);
      control.addEventListener("click", () => {
        sortBy(table, header, header.getAttribute("aria-sort") === "ascending" ? "descending" : "ascending");
      });
    }
  }

  // Filters.
  const search = document.querySelector(".search");
  const filters = all("select[data-filter]");
  const apply = () => {
    const wanted = (search?.value || "").trim().toLowerCase();
    let shown = 0, total = 0;
    for (const row of all("table.board tbody tr")) {
      const fits = (!wanted || row.textContent.toLowerCase().includes(wanted))
        && filters.every((filter) => !filter.value || row.dataset[filter.dataset.filter] === filter.value);
      row.hidden = !fits;
      if (row.closest("section.width[hidden]")) continue;
      total += 1;
      shown += fits;
    }
    for (const section of all("section.work")) section.hidden = !section.querySelector("tbody tr:not([hidden])");
    for (const label of all(".count")) label.textContent = shown === total ? "" : shown + " of " + total + " shown";
  };
  for (const [control, name] of [[search, "q"], ...filters.map((filter) => [filter, filter.dataset.filter])]) {
    if (!control) continue;
    control.value = state.get(name) || "";
    control.addEventListener("input", () => { remember(name, control.value); apply(); });
  }
  for (const tools of all(".tools")) tools.hidden = false;
  if (search) apply();

  // A row in the table brings its line in the charts forward.
  const highlight = (colour) => {
    for (const chart of all("[data-chart]")) {
      if (colour) chart.dataset.highlight = colour; else delete chart.dataset.highlight;
    }
  };
  for (const row of all("tr[data-colour]")) {
    row.addEventListener("mouseenter", () => highlight(row.dataset.colour));
    row.addEventListener("mouseleave", () => highlight(""));
    row.addEventListener("focusin", () => highlight(row.dataset.colour));
    row.addEventListener("focusout", () => highlight(""));
  }

  for (const control of all("[data-copy]")) {
    if (!navigator.clipboard) continue;
    control.hidden = false;
    control.addEventListener("click", async () => {
      await navigator.clipboard.writeText(document.getElementById(control.dataset.copy).textContent);
      control.textContent = "Copied";
    });
  }
})();
