"use strict";
(() => {
  // Okabe and Ito's colours and, for many runs, six more: darker on white and lighter on black so that each stands out.
  const PALETTES = {
    light: {
      blue: "#0072b2", vermillion: "#d55e00", green: "#009e73", purple: "#b5528c", orange: "#c98500", sky: "#3a9bd9",
      lime: "#659a00", violet: "#6a3fd4", brown: "#7a4a21", magenta: "#e63cc8", red: "#b3001b", cyan: "#1fa0b0",
      text: "#1c2024", muted: "#8b949e", axis: "#9aa2ab", grid: "#e8eaed", shade: "rgba(213,94,0,0.10)",
      veil: "rgba(255,255,255,0.8)", card: "#ffffff", scale: ["#00224e", "#b9c4d0"],
    },
    dark: {
      blue: "#56b4e9", vermillion: "#ff8c42", green: "#2fcf9f", purple: "#e08fbf", orange: "#f0b429", sky: "#9ad3f5",
      lime: "#b4e04a", violet: "#a78bff", brown: "#b98a5e", magenta: "#ff5fe0", red: "#ff5a66", cyan: "#5ff0ff",
      text: "#e7e9eb", muted: "#7d8791", axis: "#6c757e", grid: "#30363c", shade: "rgba(255,140,66,0.16)",
      veil: "rgba(28,32,36,0.8)", card: "#1c2024", scale: ["#d9ecff", "#3b5268"],
    },
  };
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const touch = window.matchMedia("(pointer: coarse)").matches;
  const plots = [...document.querySelectorAll(".plot")];
  const drawn = new Map();
  const ROW = 19; // pixels of a legend's row

  const palette = () => PALETTES[dark.matches ? "dark" : "light"];

  // "@blue" -> the theme's blue, "@scale0.30" -> between the theme's two ends of a scale.
  function coloured(value, colours) {
    if (typeof value === "string" && value.startsWith("@")) {
      return value.startsWith("@scale") ? between(colours.scale, Number(value.slice(6))) : colours[value.slice(1)] ?? value;
    }
    if (Array.isArray(value)) {
      return typeof value[0] === "object" && value[0] !== null ? value.map(item => coloured(item, colours)) : value;
    }
    if (value === null || typeof value !== "object") return value;
    return Object.fromEntries(Object.entries(value).map(([key, item]) => [key, coloured(item, colours)]));
  }

  function between([first, last], share) {
    const parts = [1, 3, 5].map(at => [first, last].map(colour => parseInt(colour.slice(at, at + 2), 16)));
    return "rgb(" + parts.map(([a, b]) => Math.round(a + (b - a) * share)).join(",") + ")";
  }

  function layoutOf(figure, colours) {
    const layout = coloured(figure.layout, colours);
    const axis = { gridcolor: colours.grid, linecolor: colours.axis, zerolinecolor: colours.grid, automargin: true, hoverformat: ".5~g" };
    for (const name of ["xaxis", "yaxis", ...Object.keys(layout).filter(key => /^[xy]axis\d/.test(key))]) {
      const own = layout[name] ?? {};
      const title = { standoff: 8, font: { size: 12 }, ...own.title };
      layout[name] = { ...axis, ...own, title };
    }
    return {
      margin: { l: 52, r: 12, t: 22, b: 36 }, paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
      font: { color: colours.text, size: 12, family: getComputedStyle(document.body).fontFamily },
      legend: { orientation: "h", x: 0, y: -0.22, yanchor: "top", font: { size: 11 } },
      hoverlabel: { bgcolor: colours.card, bordercolor: colours.axis, font: { color: colours.text, size: 12 }, namelength: -1 },
      modebar: { bgcolor: "rgba(0,0,0,0)", color: colours.muted, activecolor: colours.text },
      dragmode: touch ? false : "zoom", ...layout,
    };
  }

  // What was chosen on this page, kept while it loads itself anew.
  const kept = (() => {
    try { return JSON.parse(sessionStorage.getItem("atlas " + location.pathname)) ?? {}; } catch { return {}; }
  })();
  const chosen = { smoothing: 0, stays: false, hidden: [], log: {}, range: {}, open: [], another: "", ...kept };

  function keep() {
    chosen.open = [...document.querySelectorAll("details[open]")].map(nameOf);
    try { sessionStorage.setItem("atlas " + location.pathname, JSON.stringify(chosen)); } catch { /* a page without storage */ }
  }

  const nameOf = element =>
    (element.closest("section")?.id ?? "") + "/" + (element.closest("figure")?.querySelector("h3").textContent ?? element.className);

  // The mean over the values before, the newest counting most, as TensorBoard smooths.
  function smoothed(values, weight) {
    let sum = 0, total = 0;
    return values.map(value => {
      if (value === null) return null;
      sum = weight * sum + (1 - weight) * value;
      total = weight * total + (1 - weight);
      return sum / total;
    });
  }

  function tracesOf(figure) {
    const weight = chosen.smoothing;
    const shown = figure.data.filter(trace => !chosen.hidden.includes(trace.legendgroup));
    if (!weight || !figure.steps) return shown;
    return shown.filter(trace => trace.meta !== "mean").flatMap(trace => {
      if (trace.meta === "undone" || trace.meta === "level" || !trace.mode?.includes("lines") || trace.y.length < 3) return [trace];
      const faint = { ...trace, opacity: 0.25, showlegend: false, hoverinfo: "skip", hovertemplate: undefined };
      const line = { ...trace.line, width: Math.max(trace.line.width, 1.8) };
      return [faint, { ...trace, y: smoothed(trace.y, weight), mode: "lines", line, opacity: 1, showlegend: trace.meta === "raw" ? true : trace.showlegend }];
    });
  }

  function draw(plot) {
    const figure = figureOf(plot);
    const colours = palette(), name = nameOf(plot), layout = layoutOf(figure, colours);
    if (name in chosen.log) {
      layout.yaxis = { ...layout.yaxis, type: chosen.log[name] ? "log" : "linear", range: undefined, autorange: true };
    }
    for (const [axis, range] of Object.entries(chosen.range[name] ?? {})) {
      layout[axis] = { ...layout[axis], range: range ?? undefined, autorange: range === null };
    }
    const options = { responsive: true, displaylogo: false, displayModeBar: !touch, modeBarButtons: [["zoom2d", "pan2d", "resetScale2d", "toImage"]] };
    const traces = tracesOf(figure);
    if (plot.clientWidth < 500) { // the axis title takes more of its height, and the legend has more rows
      layout.legend.y = -0.3;
      plot.style.height = `${290 + ROW * Math.max(0, legendRows(traces, plot.clientWidth) - 2)}px`;
    }
    Plotly.react(plot, coloured(traces, colours), layout, options);
  }

  // Rows of a legend whose entries stand in columns as wide as the longest name, by the average width of a letter.
  function legendRows(traces, width) {
    const names = traces.filter(trace => trace.name && trace.showlegend !== false).map(trace => plain(trace.name).length);
    return Math.ceil(names.length / Math.max(1, Math.floor((width - 70) / (50 + 6 * Math.max(...names)))));
  }

  function figureOf(plot) {
    if (!drawn.has(plot)) {
      const figure = JSON.parse(plot.nextElementSibling.textContent);
      figure.steps = figure.layout.xaxis?.title?.text === "step";
      drawn.set(plot, figure);
    }
    return drawn.get(plot);
  }

  function drawOnce(plot) {
    if (!drawn.has(plot)) {
      addButtons(plot);
      draw(plot);
      plot.on("plotly_relayout", change => remember(plot, change));
    }
    // For whoever measures: the charts drawn so far, and when the last of them was, in ms since the page was opened.
    Object.assign(document.documentElement.dataset, { drawn: drawn.size, shown: Math.round(performance.now()) });
  }

  // A part of a chart that was chosen with the pointer.
  function remember(plot, change) {
    const name = nameOf(plot);
    for (const axis of ["xaxis", "yaxis"]) {
      if (change[`${axis}.range[0]`] !== undefined) {
        (chosen.range[name] ??= {})[axis] = [change[`${axis}.range[0]`], change[`${axis}.range[1]`]];
      } else if (change[`${axis}.autorange`] || change[`${axis}.range`]) {
        delete chosen.range[name]?.[axis];
      }
    }
  }

  function drawAll() {
    document.querySelectorAll("details").forEach(details => { details.open = true; });
    plots.forEach(drawOnce);
  }

  const redraw = () => drawn.forEach((_, plot) => draw(plot));

  // The buttons of a chart.
  function addButtons(plot) {
    const row = document.createElement("div");
    const name = nameOf(plot), figure = figureOf(plot);
    row.className = "act";
    const button = (text, title, action) => {
      const made = Object.assign(document.createElement("button"), { type: "button", textContent: text, title });
      made.addEventListener("click", () => action(made));
      row.append(made);
      return made;
    };
    const lines = figure.data.filter(trace => trace.type === "scatter" && trace.meta !== "level");
    const positive = lines.length && lines.every(trace => trace.y.every(value => value === null || value > 0));
    if (positive && figure.layout.yaxis?.showticklabels !== false) {
      const isLog = () => chosen.log[name] ?? figure.layout.yaxis?.type === "log";
      const made = button("log", "logarithmic axis", () => {
        chosen.log[name] = !isLog();
        delete chosen.range[name]?.yaxis;
        made.setAttribute("aria-pressed", isLog());
        draw(plot);
      });
      made.setAttribute("aria-pressed", isLog());
    }
    const [low, high] = figure.layout.yaxis?.range ?? [-Infinity, Infinity];
    if (figure.layout.yaxis?.showticklabels !== false && lines.some(trace => trace.y.some(value => value < low || value > high))) {
      button("all", "the whole range of values, or the usual one again", () => {
        const range = chosen.range[name] ??= {};
        if (range.yaxis === null) delete range.yaxis; else range.yaxis = null;
        draw(plot);
      });
    }
    button("CSV", "the numbers of this chart", () => save(plot, figureOf(plot)));
    plot.parentElement.querySelector("figcaption h3").after(row);
  }

  // Text of a chart without its markup; parsing runs nothing.
  const plain = text => typeof text === "string" ? new DOMParser().parseFromString(text, "text/html").body.textContent : text;

  // The numbers of a chart: a line for each point.
  function save(plot, figure) {
    const quoted = value => /[",\n]/.test(value) ? `"${String(value).replaceAll('"', '""')}"` : value;
    const shown = figure.data.filter(trace => !chosen.hidden.includes(trace.legendgroup));
    const rows = shown.flatMap(trace => {
      const name = plain(trace.name);
      if (trace.z) return trace.z.flatMap((line, y) => line.map((value, x) => [plain(trace.y[y]), trace.x[x], value]));
      if (trace.customdata) return trace.customdata.map(([axis, value]) => [name, plain(axis), plain(value)]);
      return trace.y.map((value, at) => [name, plain(trace.x[at]), value]);
    });
    const text = [["series", figure.layout.xaxis?.title?.text || "x", "value"], ...rows]
      .map(row => row.map(value => quoted(value ?? "")).join(",")).join("\n") + "\n";
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([text], { type: "text/csv" }));
    link.download = plot.parentElement.querySelector("h3").textContent.trim().replace(/[^\w.=-]+/g, "_") + ".csv";
    link.click();
    URL.revokeObjectURL(link.href);
  }

  // Every series of the single runs' charts: its name -> the trace of each run that has it.
  function seriesOfRuns() {
    const found = new Map();
    for (const section of document.querySelectorAll("section[id^='run-']")) {
      const run = section.id.slice(4), label = section.querySelector("h2").innerHTML; // as the names of other traces
      for (const plot of section.querySelectorAll(".plot")) {
        const { data, layout } = JSON.parse(plot.nextElementSibling.textContent);
        const title = plot.parentElement.querySelector("h3").textContent;
        for (const trace of layout.xaxis?.title?.text === "step" ? data : []) {
          if (trace.type !== "scatter" || ["undone", "level", "mean"].includes(trace.meta)) continue;
          const unit = layout.yaxis.title.text; // that of losses is not the same in all runs
          const key = JSON.stringify([title, plain(trace.name), unit.startsWith("nats per") ? `, ${unit}` : ""]);
          if (!found.has(key)) found.set(key, { axis: layout.yaxis, traces: [] });
          found.get(key).traces.push({ ...trace, name: label, legendgroup: run });
        }
      }
    }
    // A chart's only line has its title, whatever else is drawn there in some of the runs: levels, undone steps.
    const keys = [...found.keys()].map(key => JSON.parse(key));
    const only = title => new Set(keys.filter(key => key[0] === title).map(key => key[1])).size === 1;
    return new Map([...found.values()].map((series, at) => {
      const [title, line, unit] = keys[at];
      return [(only(title) ? title : `${title}: ${line}`) + unit, series];
    }));
  }

  // A chart of all runs of a series that the report has no such chart of.
  function addAnother(runs) {
    const select = document.createElement("select"), label = document.createElement("label");
    const colours = [...runs.querySelectorAll("i")].map(dot => dot.dataset.colour);
    const figure = document.createElement("figure");
    let series;
    const fill = () => {
      if (series) return;
      series = seriesOfRuns();
      for (const [name, { traces }] of series) if (traces.length > 1) select.append(new Option(name, name));
    };
    const show = () => {
      chosen.another = select.value;
      for (const plot of drawn.keys()) if (figure.contains(plot)) { drawn.delete(plot); Plotly.purge(plot); }
      figure.remove();
      if (!select.value) return;
      const { axis, traces } = series.get(select.value);
      const data = traces.map(trace => {
        const colour = colours[Number(trace.legendgroup)];
        return {
          ...trace, meta: undefined, opacity: 1, hoverinfo: undefined, hovertemplate: "%{fullData.name}<br>step %{x}: %{y:.4g}<extra></extra>",
          line: { color: colour, width: 1.6 }, marker: { color: colour, size: 5 },
        };
      });
      const layout = {
        xaxis: { title: { text: "step" } }, yaxis: { title: axis.title, type: axis.type, tickformat: axis.tickformat },
        hovermode: "closest", showlegend: false,
      };
      figure.className = "chart";
      figure.innerHTML = "<figcaption><h3></h3></figcaption><div class='plot' role='img'></div>";
      figure.querySelector("h3").textContent = `${select.value}, all runs`;
      figure.append(Object.assign(document.createElement("script"), { type: "application/json", textContent: JSON.stringify({ data, layout }) }));
      runs.parentElement.querySelector(".charts").prepend(figure);
      drawOnce(figure.querySelector(".plot"));
    };
    label.append("another series of these runs", select);
    select.append(new Option("none", ""));
    select.addEventListener("focus", fill);
    select.addEventListener("pointerdown", fill);
    select.addEventListener("change", () => { fill(); show(); });
    runs.append(label);
    if (chosen.another) {
      fill();
      select.value = chosen.another;
      if (select.value) show();
    }
  }

  // The page loads itself anew, though not where nobody looks, nor under the reader's hands.
  function reload(tools) {
    const seconds = Number(document.documentElement.dataset.refresh);
    if (!seconds) return;
    const label = document.createElement("label"), box = Object.assign(document.createElement("input"), { type: "checkbox" });
    let pressed = false;
    for (const event of ["pointerdown", "pointerup", "pointercancel"]) {
      window.addEventListener(event, () => { pressed = event === "pointerdown"; }, true);
    }
    const busy = () => document.hidden || pressed || document.activeElement?.tagName === "SELECT" || !getSelection().isCollapsed;
    const look = () => { if (box.checked && !busy()) location.reload(); else setTimeout(look, 500); };
    box.checked = !chosen.stays;
    box.addEventListener("change", () => { chosen.stays = !box.checked; });
    label.append(box, `new numbers every ${seconds} s`);
    tools.append(label);
    setTimeout(look, 1000 * seconds);
  }

  function addTools() {
    const tools = document.querySelector(".tools"), slider = document.getElementById("smoothing");
    const say = () => { slider.nextElementSibling.textContent = chosen.smoothing || "off"; };
    tools.hidden = false;
    reload(tools);
    slider.value = chosen.smoothing;
    say();
    slider.addEventListener("input", () => { chosen.smoothing = Number(slider.value); say(); redraw(); });
    for (const runs of document.querySelectorAll(".runs")) {
      const boxes = [...runs.querySelectorAll("input")];
      const take = () => { chosen.hidden = boxes.filter(box => !box.checked).map(box => box.value); redraw(); };
      for (const box of boxes) {
        box.checked = !chosen.hidden.includes(box.value);
        box.addEventListener("change", take);
      }
      const buttons = document.createElement("span");
      for (const [text, on] of [["all", true], ["none", false]]) {
        const made = Object.assign(document.createElement("button"), { type: "button", textContent: text });
        made.addEventListener("click", () => { for (const box of boxes) box.checked = on; take(); });
        buttons.append(made);
      }
      runs.querySelector("legend").after(buttons);
      addAnother(runs);
    }
    paint();
  }

  function paint() {
    for (const dot of document.querySelectorAll(".runs i")) dot.style.background = coloured(dot.dataset.colour, palette());
  }

  function sort(header) {
    const table = header.closest("table");
    const column = [...header.parentElement.children].indexOf(header);
    const down = header.getAttribute("aria-sort") === "ascending";
    for (const other of header.parentElement.children) other.removeAttribute("aria-sort");
    header.setAttribute("aria-sort", down ? "descending" : "ascending");
    const numeric = header.classList.contains("number");
    const key = row => {
      const cell = row.children[column];
      return cell.dataset.order !== undefined ? Number(cell.dataset.order) : numeric ? null : cell.textContent;
    };
    const compare = (a, b) => typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b));
    const rows = [...table.tBodies[0].rows].map(row => [key(row), row]);
    rows.sort(([a], [b]) => a === null || b === null ? (a === null) - (b === null) : (down ? -1 : 1) * compare(a, b));
    table.tBodies[0].append(...rows.map(([, row]) => row));
  }

  // A link to a folded section opens it.
  function unfold() {
    const named = document.getElementById(decodeURIComponent(location.hash.slice(1)));
    const details = named?.querySelector(":scope > details");
    if (details) details.open = true;
  }

  for (const button of document.querySelectorAll(".sortable button")) {
    button.addEventListener("click", () => sort(button.parentElement));
  }
  window.addEventListener("hashchange", unfold);
  window.addEventListener("beforeprint", drawAll);
  document.addEventListener("DOMContentLoaded", () => {
    if (typeof Plotly === "undefined") { // the error handler says so too
      for (const plot of plots) plot.textContent = "This chart needs plotly.min.js beside the page; one_file=true writes a page that needs nothing.";
      return;
    }
    const watcher = new IntersectionObserver(entries => {
      entries.filter(entry => entry.isIntersecting).forEach(entry => { watcher.unobserve(entry.target); drawOnce(entry.target); });
    }, { rootMargin: "200px" });
    for (const details of document.querySelectorAll("details")) details.open ||= chosen.open.includes(nameOf(details));
    addTools();
    plots.forEach(plot => watcher.observe(plot));
    dark.addEventListener("change", () => { redraw(); paint(); });
    window.addEventListener("pagehide", keep);
    unfold();
    if (location.search.includes("all")) drawAll();
  });
})();
