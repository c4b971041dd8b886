"use strict";
(() => {
  // Okabe and Ito's colours, darker on white and lighter on black so that each stands out.
  const PALETTES = {
    light: {
      blue: "#0072b2", vermillion: "#d55e00", green: "#009e73", purple: "#b5528c", orange: "#c98500", sky: "#3a9bd9",
      text: "#1c2024", muted: "#8b949e", axis: "#9aa2ab", grid: "#e8eaed", shade: "rgba(213,94,0,0.10)",
      veil: "rgba(255,255,255,0.8)", card: "#ffffff", scale: ["#00224e", "#b9c4d0"],
    },
    dark: {
      blue: "#56b4e9", vermillion: "#ff8c42", green: "#2fcf9f", purple: "#e08fbf", orange: "#f0b429", sky: "#9ad3f5",
      text: "#e7e9eb", muted: "#7d8791", axis: "#6c757e", grid: "#30363c", shade: "rgba(255,140,66,0.16)",
      veil: "rgba(28,32,36,0.8)", card: "#1c2024", scale: ["#d9ecff", "#3b5268"],
    },
  };
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const touch = window.matchMedia("(pointer: coarse)").matches;
  const plots = [...document.querySelectorAll(".plot")];
  const drawn = new Map();

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
    const axis = { gridcolor: colours.grid, linecolor: colours.axis, zerolinecolor: colours.grid, automargin: true };
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

  function draw(plot) {
    const figure = drawn.get(plot) ?? JSON.parse(plot.nextElementSibling.textContent);
    drawn.set(plot, figure);
    const colours = palette();
    const options = { responsive: true, displaylogo: false, displayModeBar: !touch, modeBarButtons: [["zoom2d", "pan2d", "resetScale2d", "toImage"]] };
    Plotly.react(plot, coloured(figure.data, colours), layoutOf(figure, colours), options);
  }

  function drawOnce(plot) {
    if (!drawn.has(plot)) draw(plot);
    // For whoever measures: the charts drawn so far, and when the last of them was, in ms since the page was opened.
    Object.assign(document.documentElement.dataset, { drawn: drawn.size, shown: Math.round(performance.now()) });
  }

  function drawAll() {
    document.querySelectorAll("details").forEach(details => { details.open = true; });
    plots.forEach(drawOnce);
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
    plots.forEach(plot => watcher.observe(plot));
    dark.addEventListener("change", () => drawn.forEach((_, plot) => draw(plot)));
    unfold();
    if (location.search.includes("all")) drawAll();
  });
})();
