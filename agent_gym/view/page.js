// What both kinds of page are made of. Text of models and files becomes text nodes; nothing is ever parsed as markup.
"use strict";

const json = id => JSON.parse(document.getElementById(id).textContent);
const DATA = json("data");
const CHANNELS = DATA.channels;

function el(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value !== false && value != null) node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.flat().filter(child => child != null));
  return node;
}

const words = name => name.replaceAll("_", " ");
const isNumber = x => typeof x === "number";
const share = x => isNumber(x) ? x.toFixed(3) : "\u2013";
const amount = x => {
  if (!isNumber(x)) return "\u2013";
  const digits = Math.abs(x) >= 100 ? 0 : Math.abs(x) >= 10 ? 1 : 2;
  return x.toLocaleString("en", {minimumFractionDigits: digits, maximumFractionDigits: digits});
};
const exact = x => Number.isInteger(x) ? x.toLocaleString("en") : amount(x);
// What is not 0 of a cost by channel.
const unit = (k, x) => words(k).replace("latency ", "").replace(/(call|token)s$/, x === 1 ? "$1" : "$&");
const costs = cost => CHANNELS.filter(k => cost[k]).map(k => `${exact(cost[k])} ${unit(k, cost[k])}`).join(", ")
  || "nothing";

function section(id, title, ...children) {
  const heading = el("h2", {id: `${id}-title`}, title);
  const node = el("section", {id, "aria-labelledby": heading.id}, heading, ...children);
  document.getElementById("main").append(node);
  document.getElementById("nav").append(el("a", {href: `#${id}`}, title));
  return node;
}

function labelled(label, input) {
  input.id = `field-${++labelled.count}`;
  return el("div", {}, el("label", {for: input.id}, label), input);
}
labelled.count = 0;

// A select with its label. `choices` are [value, text].
function choice(label, choices, change) {
  const select = el("select", {onchange: () => change(select.value)},
    choices.map(([value, text]) => el("option", {value}, text)));
  return labelled(label, select);
}

const channelChoice = (label, change) => choice(label, CHANNELS.map(k => [k, words(k)]), change);

// ---- tables ----

// Columns are {name, value: row -> what it is sorted by, cell: row -> what is shown, text: not a number}.
function table(caption, columns, rows, {sorted = null, descending = true, sortable = true, row = () => ({})} = {}) {
  const body = el("tbody"), heads = columns.map(column => {
    const button = el("button", {type: "button", onclick: () => {
      descending = sorted === column.name ? !descending : !column.text;
      sorted = column.name;
      fill();
    }}, column.name);
    return el("th", {scope: "col", class: column.text ? null : "number"}, sortable ? button : column.name);
  });
  function fill() {
    const by = columns.find(column => column.name === sorted), sign = descending ? -1 : 1;
    const ordered = by ? [...rows].sort((a, b) => {
      const x = by.value(a), y = by.value(b);
      if (x == null || y == null) return (x == null) - (y == null);  // what is not there comes last
      return sign * (isNumber(x) ? x - y : String(x).localeCompare(String(y), "en", {numeric: true}));
    }) : rows;
    heads.forEach((head, i) => {
      if (columns[i].name === sorted) head.setAttribute("aria-sort", descending ? "descending" : "ascending");
      else head.removeAttribute("aria-sort");
    });
    body.replaceChildren(...ordered.map(one => el("tr", row(one), columns.map((column, i) => {
      const shown = (column.cell || column.value)(one);
      const cell = el(i ? "td" : "th", {class: column.text ? null : "number", scope: i ? null : "row"},
        shown ?? "\u2013");
      if (column.style) column.style(cell, one);
      return cell;
    }))));
  }
  fill();
  const whole = el("table", {}, el("caption", {}, el("span", {}, caption)), el("thead", {}, el("tr", {}, heads)), body);
  return el("div", {class: "scroll", tabindex: 0, role: "region", "aria-label": caption}, whole);
}

// A column of means with their intervals: `of(row)` is [mean, low, high], or nothing.
const measured = (name, of, format) => ({
  name,
  value: row => of(row)?.[0],
  cell: row => {
    const [mean, low, high] = of(row) || [];
    return [format(mean, row), isNumber(low) ? el("small", {}, `[${format(low, row)}, ${format(high, row)}]`) : null];
  },
});

// The background of a cell: `part` from -1 to 1.
function heat(cell, part) {
  cell.classList.add("heat");
  const colour = part < 0 ? "--minus" : "--plus", percent = Math.round(55 * Math.min(1, Math.abs(part)));
  if (percent) cell.style.background = `color-mix(in srgb, var(${colour}) ${percent}%, transparent)`;
}

// ---- charts ----

const colour = name => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const series = i => colour(`--c${i % 8}`);
// Nobody has to tell the colours apart, which come again after eight: points have shapes, and the next lines dashes.
const SHAPES = [["circle", "\u25cf"], ["square", "\u25a0"], ["diamond", "\u25c6"], ["triangle-up", "\u25b2"],
  ["triangle-down", "\u25bc"], ["star", "\u2605"], ["pentagon", "\u2b1f"]];
const marker = i => ({color: series(i), symbol: SHAPES[i % SHAPES.length][0], size: 10});
const stroke = i => ({color: series(i), width: 2, dash: ["solid", "dash", "dashdot"][Math.floor(i / 8) % 3]});
const plain = text => text.replace(/[&<>]/g, c => ({"&": "&amp;", "<": "&lt;", ">": "&gt;"})[c]);  // plotly reads tags
const clear = (hex, alpha) => hex + Math.round(255 * alpha).toString(16).padStart(2, "0");
const drawn = [];

// A chart drawn by `traces() -> {traces, layout}`, again whenever the colours change. `rows` are its table.
function chart(title, label, traces, {columns = null, rows = null} = {}) {
  const plot = el("div", {class: "plot", role: "img", "aria-label": label});
  const heading = el("h3", {}, title), below = el("div");
  const draw = () => {
    const {traces: data, layout = {}} = traces();
    const fg = colour("--fg"), line = colour("--line"), muted = colour("--muted");
    const axis = {gridcolor: line, linecolor: line, zeroline: false, tickfont: {color: muted}, automargin: true,
      fixedrange: true, title: {font: {color: muted, size: 13}, standoff: 8}};
    const merged = name => ({...axis, ...layout[name], title: {...axis.title, ...layout[name]?.title}});
    Plotly.react(plot, data, {
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", showlegend: false, hovermode: "closest",
      font: {family: "system-ui, sans-serif", size: 12, color: fg}, margin: {l: 44, r: 12, t: 8, b: 40},
      ...layout, xaxis: merged("xaxis"), yaxis: merged("yaxis"),
    }, {displayModeBar: false, responsive: true});
    if (columns) {
      const open = below.firstChild?.open;
      below.replaceChildren(el("details", {open}, el("summary", {}, "As a table"), table(label, columns(), rows())));
    }
  };
  drawn.push(draw);
  return el("figure", {}, heading, plot, below);
}

function redraw() {
  if (window.Plotly) for (const draw of drawn) draw();
}
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);

// Which entries the charts show: a set of numbers, changed by check boxes that are the legend too.
function legend(title, names, shown) {
  return el("fieldset", {class: "legend"}, el("legend", {}, title), names.map((name, i) => {
    const box = el("input", {type: "checkbox", checked: true, onchange: () => {
      if (box.checked) shown.add(i); else shown.delete(i);
      redraw();
    }});
    return el("label", {style: `--series: var(--c${i % 8})`}, box,
      el("i", {"aria-hidden": true}, SHAPES[i % SHAPES.length][1]), name);
  }));
}

// plotly takes longer to start than all else on the page: first that is shown.
addEventListener("load", () => requestIdleCallback(() => {
  document.body.append(el("script", {}, document.getElementById("plotly").textContent));
  redraw();
}, {timeout: 500}));
