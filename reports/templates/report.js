"use strict";
(() => {
  const THEMES = {
    light: { text: "#5b636d", grid: "#e8eaec", line: "#c3c8ce", card: "#ffffff", ink: "#1a1e23" },
    dark: { text: "#a2abb5", grid: "#2a2f35", line: "#4a515a", card: "#22262b", ink: "#e7e9ec" },
  };
  const NARROW = 480;
  const scheme = matchMedia("(prefers-color-scheme: dark)");
  const coarse = matchMedia("(pointer: coarse)");
  const plots = [...document.querySelectorAll("[data-plot]")];
  const chosen = {};
  let printing = false;

  function themed(box) {
    const dark = scheme.matches && !printing;
    const theme = THEMES[dark ? "dark" : "light"];
    const text = document.getElementById("data-" + box.dataset.plot).textContent;
    // Okabe-Ito's blue is too dark for a thin line on a dark ground.
    const figure = JSON.parse(dark ? text.replaceAll('"#0072B2"', '"#3a9bdc"') : text);
    const narrow = box.clientWidth < NARROW && !printing;
    const layout = figure.layout;
    const family = getComputedStyle(document.body).fontFamily;
    layout.font = { family, size: narrow ? 11 : 12, color: theme.text };
    layout.hoverlabel = { bgcolor: theme.card, bordercolor: theme.line, font: { family, size: 12, color: theme.ink } };
    layout.xaxis = layout.xaxis || {};
    layout.yaxis = layout.yaxis || {};
    for (const key of Object.keys(layout).filter((name) => /^[xy]axis\d*$/.test(name))) {
      Object.assign(layout[key], {
        gridcolor: theme.grid, zerolinecolor: theme.line, linecolor: theme.line, fixedrange: coarse.matches,
      });
      layout[key].title = Object.assign({ font: { size: 12 } }, layout[key].title);
    }
    // Strips with names of two lines keep room for both beside their numbers.
    const left = /<br>/.test(layout.yaxis.title?.text || "") ? 62 : 50;
    if (narrow) layout.margin = Object.assign({}, layout.margin, { l: left, r: 8 });
    layout.modebar = { bgcolor: "rgba(0,0,0,0)", color: theme.line, activecolor: theme.ink };
    // On a phone the names of many windows would lie on each other; their shading still tells them apart.
    if (layout.annotations && layout.annotations.length * 14 > box.clientWidth - 60) layout.annotations = [];
    // A finger that drags over a plot means to scroll the page.
    layout.dragmode = coarse.matches ? false : "zoom";
    if (printing) layout.width = 680;
    const point = chosen[box.closest("section").querySelector("select")?.dataset.choose];
    if (point !== undefined) figure.data.forEach((trace) => { trace.visible = trace.meta.point === point; });
    // A legend of many rows must not eat the plot.
    const named = figure.data.filter((trace) => trace.name && trace.visible !== false).length;
    const rows = Math.ceil(named / Math.max(1, Math.floor(box.clientWidth / 150)));
    if (layout.showlegend) layout.height += Math.max(0, rows - 2) * 22;
    return figure;
  }

  const config = {
    responsive: true, displayModeBar: coarse.matches ? false : "hover", displaylogo: false, showTips: false, doubleClick: "reset",
    modeBarButtons: [["toImage", "zoom2d", "pan2d", "resetScale2d"]],
  };

  function draw(boxes = plots) {
    for (const box of boxes) {
      const figure = themed(box);
      Plotly.react(box, figure.data, figure.layout, config);
    }
  }

  for (const select of document.querySelectorAll("[data-choose]")) {
    select.addEventListener("change", () => {
      chosen[select.dataset.choose] = select.value;
      draw([...select.closest("section").querySelectorAll("[data-plot]")]);
    });
  }
  scheme.addEventListener("change", () => draw());
  addEventListener("beforeprint", () => { printing = true; draw(); });
  addEventListener("afterprint", () => { printing = false; draw(); });
  draw();
  document.documentElement.dataset.drawn = String(plots.length);
})();
