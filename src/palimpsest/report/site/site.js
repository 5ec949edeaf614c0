"use strict";
const one = (query, at = document) => at.querySelector(query);
const all = (query, at = document) => [...at.querySelectorAll(query)];
const data = (id) => JSON.parse(document.getElementById(id)?.textContent ?? "null");
const node = (name, attributes = {}, ...inside) => {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) if (value !== null) made.setAttribute(key, value);
  made.append(...inside);
  return made;
};

// --- light and dark ---

for (const button of all("[data-theme-toggle]"))
  button.addEventListener("click", () => {
    const root = document.documentElement;
    const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
    root.dataset.theme = dark ? "light" : "dark";
    try { localStorage.setItem("theme", root.dataset.theme); } catch {}
  });

// --- copying ---

for (const button of all("[data-copy]"))
  button.addEventListener("click", async () => {
    const code = button.previousElementSibling;
    try { await navigator.clipboard.writeText(code.textContent); button.textContent = "Copied"; }
    catch { getSelection().selectAllChildren(code); button.textContent = "Selected"; }
    setTimeout(() => { button.textContent = "Copy"; }, 1600);
  });

// --- what is shown stands in the address ---

let state = new URLSearchParams();
const read = () => { state = new URLSearchParams(location.hash.includes("=") ? location.hash.slice(1) : ""); };
const keep = (name, value) => {
  if (value) state.set(name, value); else state.delete(name);
  history.replaceState(null, "", "#" + state);
};
const go = (id) => {
  const place = document.getElementById(id);
  if (place) { place.scrollIntoView(); place.setAttribute("tabindex", "-1"); place.focus({ preventScroll: true }); }
};
for (const link of all('.top nav a[href^="#"]'))
  link.addEventListener("click", (event) => {
    event.preventDefault();
    keep("at", link.hash.slice(1));
    go(link.hash.slice(1));
  });

// --- filters ---

const filters = all("[data-filter]");
const words = (text) => text.toLowerCase().split(/\s+/).filter(Boolean);
const fits = (row) => filters.every((filter) => {
  const wanted = filter.value, name = filter.dataset.filter;
  if (!wanted) return name !== "judge" || row.dataset.second === undefined;
  if (wanted === "*") return true;
  if (name === "q") return row.dataset.text === undefined || words(wanted).every((w) => row.dataset.text.includes(w));
  return row.dataset[name] === undefined || row.dataset[name] === "" || row.dataset[name] === wanted;
});
const wanted = (name) => one(`[data-filter="${name}"]`)?.value ?? "";
const scoped = (row) =>
  (row.dataset.scopeKind ?? wanted("kind")) === wanted("kind") && (row.dataset.scopeGroup ?? wanted("group")) === wanted("group");

function apply() {
  if (!filters.length) return;
  for (const row of all("[data-row]")) row.hidden = !(fits(row) && scoped(row));
  for (const head of all("[data-alike]")) {
    const table = head.closest("table"), rows = all("[data-row]:not([hidden])", table), i = head.cellIndex;
    const alike = new Set(rows.map((row) => row.cells[i].textContent)).size < 2;
    for (const row of [head.parentElement, ...rows]) row.cells[i].hidden = alike;
  }
  for (const cell of all("[data-column]")) cell.hidden = !["", cell.dataset.column].includes(wanted("group"));
  for (const box of all("[data-many]")) {
    const rows = all("[data-row]", box), shown = rows.filter((row) => !row.hidden);
    const empty = one(".empty", box.parentElement);
    if (empty) empty.hidden = shown.length > 0;
  }
  const count = one("#count"), table = one("[data-board]:not([hidden])");
  if (count && table) {
    const shown = all("[data-row]", table).filter((row) => !row.hidden).length;
    count.textContent = `${shown} ${shown === 1 ? "row" : "rows"}`;
  }
}
for (const filter of filters)
  filter.addEventListener("input", () => { keep(filter.dataset.filter, filter.value); apply(); });
one("#reset")?.addEventListener("click", () => {
  for (const filter of filters) { filter.value = ""; keep(filter.dataset.filter, ""); }
  apply();
});

// --- one row a concept, or one over all ---

function group(by) {
  for (const button of all("[data-by]")) button.setAttribute("aria-pressed", String(button.dataset.by === by));
  for (const table of all("[data-board]")) table.hidden = table.dataset.board !== by;
}
for (const button of all("[data-by]"))
  button.addEventListener("click", () => {
    keep("by", button.dataset.by);
    group(button.dataset.by);
    apply();
  });

// --- sorting ---

function sort(table, column, direction) {
  const heads = all("thead th", table), body = table.tBodies[0];
  const value = (row) => {
    const cell = row.cells[column], own = cell.dataset.v;
    return own === undefined ? cell.textContent.trim().toLowerCase() : own === "" ? null : Number(own);
  };
  const rows = [...body.rows].map((row) => [value(row), row]);
  rows.sort(([a], [b]) => {
    if (a === null || b === null) return (a === null) - (b === null);
    const less = typeof a === "number" ? a - b : a.localeCompare(b, undefined, { numeric: true });
    return direction === "descending" ? -less : less;
  });
  body.append(...rows.map(([, row]) => row));
  heads.forEach((head, i) => i === column ? head.setAttribute("aria-sort", direction) : head.removeAttribute("aria-sort"));
}
for (const table of all("table[data-sort]"))
  all("thead th", table).forEach((head, column) => {
    one("button", head)?.addEventListener("click", () => {
      const usual = head.dataset.first ?? "ascending";
      const other = usual === "ascending" ? "descending" : "ascending";
      const direction = head.getAttribute("aria-sort") === usual ? other : usual;
      sort(table, column, direction);
      keep(`sort-${table.dataset.sort}`, `${column}-${direction}`);
    });
  });

// --- one of several figures at a time ---

function choose(select) {
  for (const figure of all(`[data-of="${select.dataset.choose}"]`)) figure.hidden = figure.dataset.name !== select.value;
}
for (const select of all("[data-choose]"))
  select.addEventListener("input", () => { keep(select.dataset.choose, select.value); choose(select); });

// --- pairs of methods ---

const comparisons = data("paired-data");
const percent = (share) => `${share > 0 ? "+" : share < 0 ? "−" : "±"}${Math.abs(100 * share).toFixed(0)}`;
const chance = (p) => (p < 0.001 ? "p < 0.001" : `p = ${p.toFixed(3)}`);
function pairs() {
  const which = one("#paired-of").value, group = comparisons[Number(which)], own = one("#paired-with");
  if (own.dataset.group !== which) {
    own.replaceChildren(...group.methods.map((name, i) => node("option", { value: i }, name)));
    own.dataset.group = which;
  }
  const mine = Number(own.value), heads = group.numbers;
  one("#paired-head").replaceChildren(node("th", { scope: "col" }, `${group.methods[mine]}, less what it is held against`),
    ...heads.map(([name, meaning]) => node("th", { scope: "col", title: meaning }, `${name} ↑`)));
  const cell = ([, , , value, low, high, p, corrected], sign) => {
    const ends = [sign * low, sign * high].sort((a, b) => a - b);
    return node("td", {}, `${percent(sign * value)} points`,
      node("small", {}, `[${percent(ends[0])}, ${percent(ends[1])}]`),
      node("small", { class: corrected < 0.05 ? "bold" : null }, `${chance(corrected)} (${chance(p)})`));
  };
  one("#paired-rows").replaceChildren(...group.methods.map((name, other) => {
    if (other === mine) return "";
    const found = (number) => group.pairs.find(([a, b, n]) => n === number && ((a === mine && b === other) || (a === other && b === mine)));
    return node("tr", {}, node("th", { scope: "row" }, name), ...heads.map(([number]) => {
      const pair = found(number);
      return pair ? cell(pair, pair[0] === mine ? 1 : -1) : node("td", {}, "–");
    }));
  }));
  one("#paired-spec").textContent = group.spec;
}
if (comparisons)
  for (const id of ["paired-of", "paired-with"])
    one(`#${id}`).addEventListener("input", (event) => { keep(id, event.target.value); pairs(); });

// --- two pictures under a slider ---

function divide(layers, range) {
  const move = (event) => {
    const box = layers.getBoundingClientRect();
    range.value = Math.max(0, Math.min(100, 100 * (event.clientX - box.left) / box.width));
    range.dispatchEvent(new Event("input"));
  };
  range.addEventListener("input", () => layers.style.setProperty("--at", `${range.value}%`));
  layers.addEventListener("pointerdown", (event) => {
    if (event.button) return;
    layers.setPointerCapture(event.pointerId);
    move(event);
  });
  layers.addEventListener("pointermove", (event) => { if (layers.hasPointerCapture(event.pointerId)) move(event); });
}
for (const hero of all(".hero")) divide(one(".layers", hero), one("input", hero));

// --- the grid: what lies behind its fold ---

function cell(column, found, at, prompt, seed, wanted, said) {
  if (!found) return node("div", { class: "absent" }, "not made");
  const [name, , sure] = found, right = wanted === said, file = name.includes(".") ? name : `${name}.webp`;
  const seen = said ? `; the judge sees ${said}` : "";
  const image = node("img", { src: `../../pictures/${file}`, loading: "lazy", alt: `${column[0]}: ${prompt} (seed ${seed})${seen}` });
  const box = node("div", { class: "cell" }, node("button", { type: "button", "data-open": at }, image));
  if (wanted) {
    const title = said ? `asked for ${wanted}, the judge sees ${said}${sure < 0 ? "" : ` (${sure} % sure)`}` : "the judge did not look";
    const sign = said ? (right ? "✓" : "✗") : "–";
    box.append(node("span", { class: `chip ${said ? (right ? "yes" : "no") : ""}`, title }, sign, " ", node("span", {}, said || "not judged")));
  }
  return box;
}
for (const fold of all("details[data-fold]"))
  fold.addEventListener("toggle", () => {
    const place = one(".rows", fold);
    if (place.dataset.filled) return;
    place.dataset.filled = "yes";
    const { columns, rows, words } = data(fold.dataset.fold);
    place.append(...rows.map(([prompt, seed, found, wanted, cells]) =>
      node("div", { class: "row" }, node("div", { class: "ask" }, prompt, " ", node("small", {}, `seed ${seed}`), ...(found ? [node("code", {}, found)] : [])),
        ...columns.map((column, i) => cell(column, cells[i], i, prompt, seed, words[wanted], words[cells[i]?.[1]])))));
  });

// --- the viewer ---

const viewer = one("#viewer");
if (viewer) {
  const layers = one(".layers", viewer), range = one("input", viewer), [left, right] = all("select", viewer);
  const [under, over] = all("img", layers);
  let row = null, zoom = 1;
  divide(layers, range);
  const rows = () => all(".row").filter((r) => r.checkVisibility?.() ?? r.offsetParent);
  const shown = () => all(":scope > *", row).slice(1).map((box) => one("img", box));
  const titles = () => all(":scope > .names span b", row.parentElement).map((b) => `${b.textContent}|${b.nextSibling?.textContent ?? ""}`);
  const paint = () => {
    const images = shown();
    for (const [image, select] of [[under, left], [over, right]]) {
      image.src = images[select.value]?.src ?? "";
      image.alt = images[select.value]?.alt ?? "";
    }
  };
  const scale = (to) => {
    zoom = Math.max(1, Math.min(8, to));
    layers.style.width = `${100 * zoom}%`;
    layers.classList.toggle("close", zoom > 1);
    one("output", viewer).textContent = `${zoom}×`;
  };
  const show = (next, sides) => {
    row = next;
    const images = shown(), names = titles().slice(0, images.length);
    const old = sides ?? [Number(left.value), Number(right.value)];
    [left, right].forEach((select, i) => {
      select.replaceChildren(...names.flatMap((name, at) => {
        if (!images[at]) return [];
        const [title, note] = name.split("|");
        return node("option", { value: at }, note ? `${title} (${note})` : title);
      }));
      select.value = images[old[i]] ? old[i] : one("option", select).value;
    });
    const every = rows(), ask = one(".ask", row);
    one("h2", viewer).textContent = ask.firstChild.textContent.trim();
    one("header small", viewer).textContent = `${one("small", ask).textContent} · ${every.indexOf(row) + 1} of ${every.length}`;
    paint();
  };
  const step = (by) => { const every = rows(); show(every[(every.indexOf(row) + by + every.length) % every.length]); };
  document.addEventListener("click", (event) => {
    const button = event.target.closest(".row [data-open]");
    if (!button) return;
    const at = Number(button.dataset.open);
    row = button.closest(".row");
    const there = shown().map((image, i) => (image ? i : -1)).filter((i) => i >= 0);
    show(row, at === there[0] ? [at, there[1] ?? at] : [there[0], at]);
    scale(1);
    range.value = 50;
    range.dispatchEvent(new Event("input"));
    viewer.showModal();
    range.focus();
  });
  for (const select of [left, right]) select.addEventListener("input", paint);
  const actions = { previous: () => step(-1), next: () => step(1), closer: () => scale(zoom * 2), further: () => scale(zoom / 2), close: () => viewer.close() };
  for (const [name, act] of Object.entries(actions)) one(`[data-act="${name}"]`, viewer).addEventListener("click", act);
  viewer.addEventListener("click", (event) => { if (event.target === viewer) viewer.close(); });
  const slide = (by) => { range.value = Number(range.value) + by; range.dispatchEvent(new Event("input")); };
  const keys = { ArrowUp: actions.previous, ArrowDown: actions.next, ArrowLeft: () => slide(-5), ArrowRight: () => slide(5), "+": actions.closer, "=": actions.closer, "-": actions.further, 0: () => scale(1) };
  viewer.addEventListener("keydown", (event) => {
    if (event.target.matches("select") || event.ctrlKey || event.metaKey || event.altKey || !keys[event.key]) return;
    event.preventDefault();
    keys[event.key]();
  });
}

// --- begin where the address says ---

function restore() {
  read();
  for (const filter of filters) filter.value = state.get(filter.dataset.filter) ?? "";
  if (one("[data-by]")) group(state.get("by") ?? one("[data-by][aria-pressed=true]").dataset.by);
  for (const table of all("table[data-sort]")) {
    const [column, direction] = (state.get(`sort-${table.dataset.sort}`) ?? "").split("-");
    if (direction && one("button", all("thead th", table)[column])) sort(table, Number(column), direction);
  }
  for (const select of all("[data-choose]")) {
    const wanted = state.get(select.dataset.choose);
    if (wanted && [...select.options].some((option) => option.value === wanted)) select.value = wanted;
    choose(select);
  }
  if (comparisons) {
    const wanted = ["paired-of", "paired-with"].map((id) => state.get(id));
    if (comparisons[wanted[0]]) one("#paired-of").value = wanted[0];
    pairs();
    if (wanted[1] && one(`#paired-with option[value="${CSS.escape(wanted[1])}"]`)) { one("#paired-with").value = wanted[1]; pairs(); }
  }
  apply();
  if (state.get("at")) go(state.get("at"));
}
restore();
addEventListener("hashchange", restore);
document.documentElement.dataset.ready = "yes";
