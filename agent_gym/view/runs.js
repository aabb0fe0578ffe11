// The page of run folders: end tables, curves, credit maps, conflicts, trajectories.

const runs = DATA.entries;
const shown = new Set(runs.keys());
let channel = CHANNELS[0];
const here = () => runs.filter((_, i) => shown.has(i));
const lastOf = (run, key) => run.rows.findLast(row => key in row)?.[key];
// A figure of training, or where a trainer tests instead (rft.py), of its tests on validation.
const figure = (row, name) => row[`charts/${name}`] ?? row[`validation/${name}`];

// A run's label is its folder's name without the time; what tells it from the others stands below it.
runs.forEach((run, i) => {
  const [env, trainer, ...rest] = run.name.split("__"), base = run => run.name.split("__").slice(0, -1).join("__");
  const before = runs.slice(0, i).filter(other => base(other) === base(run)).length;
  const named = trainer ? [trainer, ...rest.slice(0, -2), env, `seed ${run.args.seed}`].join(" ") : run.name;
  run.label = before ? `${named} (${before + 1})` : named;
});
const trainer = run => run.name.split("__")[1];
const flat = (value, name = "") => value && typeof value === "object" && !Array.isArray(value)
  ? Object.entries(value).flatMap(([key, one]) => flat(one, name ? `${name}.${key}` : key))
  : [[name, value === null ? "unset" : typeof value === "string" ? value : JSON.stringify(value)]];
const FREE = /^(seed|run_dir|resume|device|track|wandb_project|keep_best|eval_.*|.*_every)$/;  // change no training
for (const run of runs) run.settings = new Map(flat(run.args).filter(([key]) => !FREE.test(key)));
const difference = run => [...run.settings].filter(([key, value]) => runs.some(other =>
  trainer(other) === trainer(run) && other.settings.get(key) !== value)).map(one => one.join(" ")).join(", ");
const runColumn = {name: "run", text: true, value: run => run.label};

section("runs", "Runs",
  table("Runs and their last iteration", [
    {...runColumn, cell: run => [run.label, el("small", {}, run.folder), el("small", {}, difference(run))]},
    {name: "iterations", value: run => run.rows.length},
    {name: "success", value: run => figure(run.rows.at(-1), "success"),
      cell: run => share(figure(run.rows.at(-1), "success"))},
    {name: "in budget", value: run => figure(run.rows.at(-1), "in_budget_success"),
      cell: run => share(figure(run.rows.at(-1), "in_budget_success"))},
    {name: "violation", value: run => lastOf(run, "violation/any"), cell: run => share(lastOf(run, "violation/any"))},
    {name: "generated tokens", value: run => lastOf(run, "charts/generated_tokens"),
      cell: run => exact(lastOf(run, "charts/generated_tokens"))},
  ], runs));

const titles = [...new Set(runs.flatMap(run => Object.keys(run.tests)))];
if (titles.length) {
  const place = el("div");
  const draw = title => {
    const tested = runs.flatMap(run => Object.entries(run.tests[title] || {}).map(([name, of]) => ({run, name, of})));
    const names = [...new Set(tested.flatMap(test => Object.keys(test.of)))].map(name => ({name}));
    place.replaceChildren(table(`Starting and final policy on the ${title} tasks, with 95% intervals`, [
      {name: "figure", text: true, value: row => words(row.name)},
      ...tested.map(test => measured(runs.length > 1 ? `${test.run.label}: ${test.name}` : test.name,
        row => test.of[row.name], (x, row) => /^(mean|different)/.test(row.name) ? amount(x) : share(x))),
    ], names, {sortable: false}));
  };
  section("tests", "Tests",
    el("div", {class: "choices"}, choice("Tasks", titles.map(title => [title, title]), draw)), place);
  draw(titles[0]);
}

function curve(title, of, {layout = {}, dashed = null} = {}) {
  const name = () => title.replace("cost", words(channel));
  return chart(title, `${title} over the iterations, a line a run`, () => ({
    traces: runs.flatMap((run, i) => {
      if (!shown.has(i)) return [];
      const line = (f, style) => {
        const rows = run.rows.filter(row => isNumber(f(row)));
        return {x: rows.map(row => row.iteration), y: rows.map(f), mode: rows.length > 1 ? "lines" : "markers",
          line: {...stroke(i), ...style}, marker: marker(i), hoverinfo: "text",
          text: rows.map(row => plain(`${run.label}, ${row.iteration}: ${amount(f(row))}`))};
      };
      return dashed ? [line(of), line(dashed, {dash: "dot", width: 1.5})] : [line(of)];
    }),
    layout: {xaxis: {title: {text: "iteration"}}, ...layout},
  }), {rows: here, columns: () => [runColumn, ...["first", "last"].map((end, k) => ({
    name: `${end}: ${name()}`, value: run => run.rows.map(of).filter(isNumber).at(-k),
    cell: run => amount(run.rows.map(of).filter(isNumber).at(-k)),
  }))]});
}

const shares = {layout: {yaxis: {range: [-0.03, 1.03]}}}, from0 = {layout: {yaxis: {rangemode: "tozero"}}};
section("curves", "Curves",
  el("p", {class: "note"}, "Of the training episodes of each iteration; of rft.py, of the tests on validation."),
  el("div", {class: "choices"}, channelChoice("Cost", value => { channel = value; redraw(); })),
  legend("Runs", runs.map(run => run.label), shown),
  el("div", {class: "charts"},
    curve("Success", row => figure(row, "success"), shares),
    curve("In-budget success", row => figure(row, "in_budget_success"), shares),
    curve("Violation of any budget", row => row["violation/any"], shares),
    curve("Mean cost (dotted: its budget)", row => row[`cost/${channel}`],
      {...from0, dashed: row => row[`budget/${channel}`] > 0 ? row[`budget/${channel}`] : null}),
    curve("Violation of the cost's budget", row => row[`violation/${channel}`], shares),
    curve("Multiplier of the cost", row => row[`lambda/${channel}`], from0)));

// ---- credits ----

const maps = runs.flatMap(run => run.credits.map(map => ({run, map})));
if (maps.length) {
  const place = el("div");
  const draw = i => {
    const {map} = maps[i], most = CHANNELS.map((_, k) => Math.max(1e-9, ...map.v.map(v => Math.abs(v[k] ?? 0))));
    const steps = map.steps.map((label, t) => ({t, label, u: map.u[t], v: map.v[t]}));
    const marks = t => [map.necessary.includes(t) ? "the oracle needs it" : null,
      map.eliminated.includes(t) ? "eliminated" : null].filter(Boolean).join(", ");
    place.replaceChildren(table(`${map.task_id}, ${map.success ? "passed" : "failed"}`, [
      {name: "step", text: true, value: one => one.t,
        cell: one => [`${one.t + 1}. ${one.label}`, el("small", {}, marks(one.t))]},
      {name: "success credit", value: one => one.u, cell: one => amount(one.u),
        style: (cell, one) => heat(cell, one.u ?? 0)},
      ...CHANNELS.map((k, j) => ({name: words(k), value: one => one.v[j], cell: one => amount(one.v[j]),
        style: (cell, one) => heat(cell, -(one.v[j] ?? 0) / most[j])})),
    ], steps, {sortable: false, row: one => ({class: map.eliminated.includes(one.t) ? "eliminated" : null})}));
  };
  section("credits", "Credit map",
    el("p", {class: "note"}, "What each step was worth (success credit) and cost (cost credit by channel). A step " +
      "without a number was not measured."),
    el("div", {class: "choices"}, choice("Episode", maps.map(({run, map}, i) =>
      [i, `${runs.length > 1 ? `${run.label}, ` : ""}iteration ${map.iteration}: ${map.task_id}`]), draw)),
    place);
  draw(0);
}

// ---- conflicts ----

const several = runs.filter(run => run.groups.length > 1 && run.rows.some(row => "cosine/1_0" in row));
if (several.length) {
  const place = el("div");
  let run = several[0];
  const cosine = (row, i, j) => row[`cosine/${Math.max(i, j)}_${Math.min(i, j)}`];
  const mean = (i, j) => {
    const there = run.rows.map(row => cosine(row, i, j)).filter(isNumber);
    return there.length ? there.reduce((a, b) => a + b) / there.length : null;
  };
  const over = chart("Over the iterations", "Cosine of every pair of groups over the iterations", () => {
    const pairs = run.groups.flatMap((_, i) => run.groups.slice(0, i).map((_, j) => [j, i]));
    return {
      traces: [{type: "heatmap", x: run.rows.map(row => row.iteration), y: pairs.map(([j, i]) => `${j} and ${i}`),
        z: pairs.map(([j, i]) => run.rows.map(row => cosine(row, i, j) ?? null)), zmin: -1, zmax: 1, hoverongaps: false,
        colorscale: [[0, colour("--minus")], [0.5, colour("--bg")], [1, colour("--plus")]],
        colorbar: {thickness: 10, outlinewidth: 0}, hovertemplate: "%{y}, iteration %{x}: %{z:.3f}<extra></extra>"}],
      layout: {xaxis: {title: {text: "iteration"}, dtick: run.rows.length > 10 ? null : 1},
        yaxis: {title: {text: "groups"}, type: "category"}},
    };
  });
  const draw = at => {
    run = several[at];
    const groups = run.groups.map((name, i) => ({name, i}));
    place.replaceChildren(table("Mean cosine over the run; below 0 two groups pull against each other", [
      {name: "group", text: true, value: group => `${group.i}: ${group.name}`},
      ...groups.map(other => ({name: String(other.i), value: group => mean(group.i, other.i),
        cell: group => share(mean(group.i, other.i)),
        style: (cell, group) => heat(cell, mean(group.i, other.i) ?? 0)})),
    ], groups, {sortable: false}));
    redraw();
  };
  section("conflicts", "Conflict matrix",
    el("div", {class: "choices"}, choice("Run", several.map((run, i) => [i, run.label]), draw)),
    el("div", {class: "charts"}, place, over));
  draw(0);
}

const sources = runs.flatMap((run, i) => Object.entries(run.files).map(([file, count]) => ({
  name: (runs.length > 1 ? `${run.label}, ` : "") + file, count, episodes: () => json(`episodes-${i}`)[file],
})));
if (sources.length) section("trajectories", "Trajectories", ...reader(sources));
