"use strict";

// Chapters of a long page: a phone shows their titles, and only the first one open.
if (window.matchMedia("(max-width: 760px)").matches) {
  for (const fold of [...document.querySelectorAll(".fold")].slice(1)) fold.open = false;
}

// Tables: a click on a heading sorts by its column; cells may carry the plain number in data-v.
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    if (!head.textContent.trim()) return;
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => sort(table, heads, column));
  });
}

// The first click sorts numbers downwards and words upwards, each further one turns the order around.
function sort(table, heads, column) {
  const numeric = heads[column].classList.contains("n");
  const sorted = heads[column].getAttribute("aria-sort");
  const up = sorted === null ? !numeric : sorted === "descending";
  heads.forEach((h) => h.removeAttribute("aria-sort"));
  heads[column].setAttribute("aria-sort", up ? "ascending" : "descending");
  const value = (row) => (numeric ? numberOf : wordOf)(row.cells[column]);
  const rows = [...table.tBodies[0].rows].map((row) => ({ row, value: value(row) }));
  rows.sort((a, b) => {
    if (a.value === null || b.value === null) return (a.value === null) - (b.value === null); // last both ways
    const order = numeric ? a.value - b.value : a.value.localeCompare(b.value, undefined, { numeric: true });
    return up ? order : -order;
  });
  table.tBodies[0].append(...rows.map((r) => r.row));
}

// Of a cell; null where it is empty or a dash.
function numberOf(cell) {
  const number = Number.parseFloat(cell.dataset.v ?? cell.textContent.replaceAll(",", ""));
  return Number.isNaN(number) ? null : number;
}

function wordOf(cell) {
  const text = cell.textContent.trim();
  return text === "" || text === "–" ? null : text;
}

// Charts: the pointer, a finger or the arrow keys read values off.
for (const figure of document.querySelectorAll(".chart")) {
  const chart = JSON.parse(figure.querySelector("script").textContent);
  const xs = [...new Set(chart.series.flatMap((s) => s.x))].sort((a, b) => a - b);
  for (const plot of figure.querySelectorAll(".plot")) {
    const reader = readerOf(figure, chart, xs, plot);
    plot.addEventListener("pointermove", (event) => reader.at(reader.fromClient(event.clientX)));
    plot.addEventListener("pointerleave", reader.hide);
    plot.addEventListener("blur", reader.hide);
    plot.addEventListener("keydown", (event) => {
      const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
      if (!by) return;
      event.preventDefault();
      reader.move(by);
    });
  }
}

function readerOf(figure, chart, xs, plot) {
  const box = JSON.parse(plot.dataset.plot);
  const readout = figure.querySelector(".readout");
  const layer = plot.appendChild(svg("g", {}));
  let current = -1;

  const toX = (v) => box.left + ((v - box.x0) / (box.x1 - box.x0)) * (box.right - box.left);
  const toY = (v) => box.bottom - ((v - box.y0) / (box.y1 - box.y0)) * (box.bottom - box.top);

  function fromClient(clientX) {
    const frame = plot.getBoundingClientRect();
    const x = ((clientX - frame.left) / frame.width) * box.width;
    return box.x0 + ((x - box.left) / (box.right - box.left)) * (box.x1 - box.x0);
  }

  function at(value) {
    current = nearest(xs, value);
    show(xs[current]);
  }

  function move(by) {
    current = Math.min(xs.length - 1, Math.max(0, current + by));
    show(xs[current]);
  }

  function show(x) {
    const reach = (box.x1 - box.x0) / 40; // a series is read where it has a point this near
    layer.replaceChildren(svg("path", { class: "cursor", d: `M${toX(x)} ${box.top}V${box.bottom}` }));
    const rows = [];
    const heights = [];
    for (const series of chart.series) {
      const k = nearest(series.x, x);
      if (Math.abs(series.x[k] - x) > reach) continue;
      rows.push([series.name, format(series.y[k], chart.decimals)]);
      const [cx, cy] = [toX(series.x[k]), toY(series.y[k])];
      heights.push(cy);
      if (cy >= box.top - 4 && cy <= box.bottom + 4) layer.append(svg("circle", { class: `spot ${series.style}`, cx, cy, r: 4 }));
    }
    const table = document.createElement("table");
    for (const cells of [[chart.x, format(x, 2)], ...rows]) {
      const row = table.insertRow();
      for (const text of cells) row.insertCell().textContent = text;
    }
    readout.replaceChildren(table);
    readout.hidden = false;
    place(toX(x), heights.reduce((a, b) => a + b, 0) / heights.length < (box.top + box.bottom) / 2);
  }

  // Beside the cursor, in the half of the plot where the curves are not.
  function place(x, low) {
    const [frame, parent] = [plot.getBoundingClientRect(), figure.getBoundingClientRect()];
    const centre = (x / box.width) * frame.width;
    const width = readout.offsetWidth;
    const beside = centre + 14 + width <= frame.width ? centre + 14 : centre - 14 - width;
    readout.style.left = `${Math.max(0, Math.min(beside, frame.width - width))}px`;
    const scale = frame.height / box.height;
    const down = low ? box.bottom * scale - readout.offsetHeight - 8 : box.top * scale + 4;
    readout.style.top = `${frame.top - parent.top + down}px`;
  }

  function hide() {
    readout.hidden = true;
    layer.replaceChildren();
  }

  return { at, move, hide, fromClient };
}

function nearest(sorted, value) {
  let low = 0;
  let high = sorted.length - 1;
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if (sorted[middle] <= value) low = middle;
    else high = middle;
  }
  return Math.abs(sorted[low] - value) <= Math.abs(sorted[high] - value) ? low : high;
}

function format(value, decimals) {
  if (value !== 0 && Math.abs(value) < 1e-3) return value.toExponential(2);
  return value.toLocaleString("en", { maximumFractionDigits: decimals });
}

function svg(name, attributes) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  return element;
}
