// One document across bits: the answers side by side, loaded when a reader asks for them.
// The data come as a script: browsers refuse to fetch files from file:// pages.
"use strict";
(() => {
  const viewer = document.querySelector(".viewer");
  if (!viewer) return;
  const make = (tag, text = "", name = "") => {
    const made = document.createElement(tag);
    made.textContent = text;
    made.className = name;
    return made;
  };

  // Words of the answer in a longest common subsequence with the reference, tokens as ROUGE-L has them.
  const marked = (text, reference) => {
    const pieces = text.match(/[a-z0-9]+|[^a-z0-9]+/gi) || [];
    const at = pieces.flatMap((piece, index) => (/^[a-z0-9]/i.test(piece) ? [index] : []));
    const a = at.map((index) => pieces[index].toLowerCase());
    const b = reference.toLowerCase().match(/[a-z0-9]+/g) || [];
    const long = Array.from({ length: a.length + 1 }, () => new Uint16Array(b.length + 1));
    for (let i = a.length - 1; i >= 0; i--) {
      for (let j = b.length - 1; j >= 0; j--) {
        long[i][j] = a[i] === b[j] ? long[i + 1][j + 1] + 1 : Math.max(long[i + 1][j], long[i][j + 1]);
      }
    }
    const hits = new Set();
    for (let i = 0, j = 0; i < a.length && j < b.length;) {
      if (a[i] === b[j]) { hits.add(at[i]); i++; j++; } else if (long[i + 1][j] >= long[i][j + 1]) i++; else j++;
    }
    const shown = make("p", "", "text");
    pieces.forEach((piece, index) => {
      const hit = hits.has(index) || (hits.has(index - 1) && hits.has(index + 1));
      shown.append(hit ? make("mark", piece) : piece);
    });
    return shown;
  };

  const choice = viewer.querySelector("select");
  const place = viewer.querySelector(".answers-by-bits");
  const show = (found) => {
    const text = (heading, body) => place.append(make("p", heading, "sub"), make("p", body, "text"));
    place.replaceChildren();
    text("Prompt (its end)", found.prompt);
    text("Reference", found.reference);
    const columns = make("div", "", "columns");
    for (const answer of found.answers) {
      const column = make("section");
      column.append(make("h3", `${answer.bits} bit: ${answer.score.toFixed(2)}`), make("p", answer.quantizer, "sub"));
      column.append(marked(answer.text, found.reference));
      columns.append(column);
    }
    place.append(columns);
  };

  const open = viewer.querySelector("button");
  viewer.hidden = false;
  open.onclick = () => {
    const script = make("script");
    script.src = viewer.dataset.slice;
    script.onerror = () => { open.disabled = false; place.textContent = "The file of documents beside this page is missing."; };
    script.onload = () => {
      const found = window.quenchDocuments;
      found.forEach((one, index) => {
        const option = make("option", `${one.label} ${one.document}: ${one.back < 0 ? "" : "+"}${one.back.toFixed(2)}`);
        option.value = index;
        choice.append(option);
      });
      choice.onchange = () => show(found[choice.value]);
      choice.closest("label").hidden = false;
      open.hidden = true;
      show(found[0]);
      choice.focus();
    };
    open.disabled = true;
    document.head.append(script);
  };
})();
