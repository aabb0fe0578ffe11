// The page of result files: the table, success against cost, budget curves, failures, trajectories.

const entries = DATA.entries;
const sameName = one => new Set(entries.filter(e => e.tasks.name === one.tasks.name).map(e => e.tasks.fingerprint));
const setOf = one => one.tasks.name + (sameName(one).size > 1 ? ` (${one.tasks.fingerprint.slice(0, 8)})` : "");
const sets = [...new Set(entries.map(setOf))];
for (const one of entries) {
  const alike = entries.filter(e => e.agent.name === one.agent.name && setOf(e) === setOf(one));
  const seeds = new Set(alike.map(e => e.seed));
  one.label = alike.length === 1 ? one.agent.name
    : `${one.agent.name}, ${seeds.size === alike.length ? `seed ${one.seed}` : one.file}`;
}
const agents = [...new Set(entries.map(one => one.label))];
const shown = new Set(agents.keys());
let set = sets[0], channel = CHANNELS[0];

const agentOf = one => agents.indexOf(one.label);
const here = () => entries.filter(one => setOf(one) === set && shown.has(agentOf(one)));
const bounds = one => Object.keys(one.budget).length ? `at most ${costs(one.budget)}` : null;
const agentColumn = {name: "agent", text: true, value: one => one.label};
const setColumn = {name: "task set", text: true, value: setOf};

section("table", "Leaderboard",
  table("Means over tasks with 95% intervals; choose a heading to sort by it", [
    {...agentColumn, cell: one => [one.label, bounds(one) && el("small", {}, bounds(one))]},
    {...setColumn, cell: one => [setOf(one), el("small", {}, `${one.tasks.count} tasks`),
      one.samples > 1 ? el("small", {}, `${one.samples} samples each`) : null]},
    measured("success", one => one.aggregates.success, share),
    measured("in budget", one => one.aggregates.in_budget_success, share),
    measured("Pareto AUC", one => one.aggregates.pareto_auc, share),
    ...CHANNELS.map(k => measured(words(k), one => one.aggregates.cost[k], amount)),
  ], entries, {sorted: "success"}));

section("charts", "Charts",
  el("div", {class: "choices"},
    choice("Task set", sets.map(name => [name, name]), value => { set = value; redraw(); }),
    channelChoice("Cost", value => { channel = value; redraw(); })),
  legend("Agents", agents, shown),
  el("div", {class: "charts"},
    chart("Success against cost", "Success against the mean cost of an episode, with the Pareto front", () => {
      const x = one => one.aggregates.cost[channel], y = one => one.aggregates.success;
      const there = here().filter(one => isNumber(x(one)?.[0]) && isNumber(y(one)[0]));
      const arms = (of, one) => ({type: "data", symmetric: false, array: [of(one)[2] - of(one)[0]],
        arrayminus: [of(one)[0] - of(one)[1]], thickness: 1, width: 0, color: series(agentOf(one))});
      const front = pareto(there.map(one => [x(one)[0], y(one)[0]]));
      return {
        traces: [
          {x: front.map(p => p[0]), y: front.map(p => p[1]), mode: "lines", hoverinfo: "skip",
            line: {shape: "hv", dash: "dot", width: 1.5, color: colour("--muted")}},
          ...there.map(one => ({x: [x(one)[0]], y: [y(one)[0]], error_x: arms(x, one), error_y: arms(y, one),
            mode: "markers", marker: marker(agentOf(one)), cliponaxis: false, hoverinfo: "text",
            text: plain(`${one.label}: success ${share(y(one)[0])}, ${amount(x(one)[0])} ${words(channel)}`)})),
        ],
        layout: {xaxis: {title: {text: `mean ${words(channel)}`}, rangemode: "tozero"},
          yaxis: {title: {text: "success"}, range: [-0.03, 1.03]}},
      };
    }),
    chart("Budget curves", "Success within a multiple of the oracle's cost", () => ({
      traces: here().flatMap(one => {
        const points = one.aggregates.budget_curve.filter(point => isNumber(point[1]));
        const x = points.map(point => point[0]), own = series(agentOf(one));
        const edge = {mode: "lines", line: {width: 0}, hoverinfo: "skip", x};
        return [
          {...edge, y: points.map(point => point[2])},
          {...edge, y: points.map(point => point[3]), fill: "tonexty", fillcolor: clear(own, 0.13)},
          {x, y: points.map(point => point[1]), mode: "lines", line: stroke(agentOf(one)), hoverinfo: "text",
            text: points.map(point => plain(`${one.label}: ${share(point[1])} within ${amount(point[0])} times`))},
        ];
      }),
      layout: {xaxis: {title: {text: "budget, as a multiple of the oracle's cost"}},
        yaxis: {title: {text: "success within it"}, range: [-0.03, 1.03]}},
    }), {rows: here, columns: () => [agentColumn, ...(here()[0]?.aggregates.budget_curve || []).map((point, i) =>
      measured(`${amount(point[0])}x`, one => one.aggregates.budget_curve[i]?.slice(1), share))]})));

// The points that no other one beats in success at the same cost or less, cheapest first.
function pareto(points) {
  let best = -1;
  return points.sort((a, b) => a[0] - b[0] || b[1] - a[1]).filter(point => point[1] > best && (best = point[1], true));
}

const kinds = Object.keys(DATA.failures).filter(kind => entries.some(one => one.aggregates.failures[kind]));
const partOf = (one, kind) => (one.aggregates.failures[kind] || 0) / (one.tasks.count * one.samples);
section("failures", "Failures",
  table("Share of all episodes by kind of failure", [
    agentColumn, setColumn,
    ...kinds.map(kind => ({name: words(kind), value: one => partOf(one, kind),
      cell: one => partOf(one, kind) ? share(partOf(one, kind)) : "0",
      style: (cell, one) => heat(cell, -partOf(one, kind))})),
  ], entries),
  el("details", {}, el("summary", {}, "What the kinds mean"),
    el("dl", {}, kinds.flatMap(kind => [el("dt", {}, words(kind)), el("dd", {}, DATA.failures[kind])]))));

section("trajectories", "Trajectories", ...reader(entries.map((one, i) => ({
  name: `${one.label} on ${setOf(one)}`, episodes: () => json(`episodes-${i}`),
}))));
