"use strict";
(() => {
  const payload = JSON.parse(document.getElementById("payload").textContent);
  const root = document.documentElement;
  const touch = matchMedia("(pointer: coarse)").matches;
  const systemDark = matchMedia("(prefers-color-scheme: dark)");
  const NARROW = 560; // pixels of a figure below which its legend stands under it
  const CONFIG = { responsive: true, displayModeBar: false, doubleClick: "reset" };
  // Colours of lines on white, and their replacements on a dark screen.
  const ON_DARK = {
    "#0072B2": "#5AB0E8", "#D55E00": "#FF8F47", "#009E73": "#3CCB9F", "#000000": "#F2F2F2", "#808080": "#A8A8A8", "#707070": "#A8A8A8",
    "rgba(0,114,178,0.18)": "rgba(90,176,232,0.22)", "rgba(213,94,0,0.18)": "rgba(255,143,71,0.22)",
  };
  const drawn = new Map(); // element to the function that redraws it
  const pen = document.createElement("canvas").getContext("2d");
  pen.font = "11px system-ui, sans-serif";

  function isDark() {
    return root.dataset.theme ? root.dataset.theme === "dark" : systemDark.matches;
  }

  function inkOf(name) {
    return getComputedStyle(root).getPropertyValue(name).trim();
  }

  function themed(data) {
    if (!isDark()) return structuredClone(data);
    let text = JSON.stringify(data);
    for (const [light, dark] of Object.entries(ON_DARK)) text = text.replaceAll(`"${light}"`, `"${dark}"`);
    return JSON.parse(text);
  }

  function legendRows(data, width) {
    const named = data.filter((trace) => trace.name && trace.showlegend !== false);
    if (named.length < 2) return 0;
    const widths = named.map((trace) => pen.measureText(trace.name).width + 50);
    const columns = Math.max(1, Math.floor(width / Math.max(...widths)));
    return widths.reduce((sum, one) => sum + one, 0) < width ? 1 : Math.ceil(named.length / columns);
  }

  function fullHeight(own, height, data, width) {
    return height + 20 * (own.showlegend === false ? 0 : legendRows(data, width - (width < NARROW ? 20 : 80)));
  }

  function laidOut(own, height, data, width) {
    const grid = inkOf("--grid");
    const full = fullHeight(own, height, data, width);
    const below = width < NARROW;
    const axis = { gridcolor: grid, zerolinecolor: grid, linecolor: grid, automargin: true };
    const layout = {
      autosize: true, height: full, margin: { l: 48, r: 12, t: 8, b: 40 + (below ? full - height : 0) },
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
      font: { family: "system-ui, sans-serif", size: 12, color: inkOf("--ink") },
      hoverlabel: { bgcolor: inkOf("--raised"), bordercolor: grid, font: { color: inkOf("--ink") } },
      dragmode: touch ? false : "zoom", xaxis: {}, yaxis: {}, ...structuredClone(own),
    };
    layout.legend = {
      orientation: "h", x: 0, xref: below ? "container" : "paper", y: below ? 0 : 1.02, yref: below ? "container" : "paper",
      yanchor: "bottom", font: { size: 11 }, traceorder: "normal", ...layout.legend,
    };
    for (const name of ["xaxis", "yaxis"]) layout[name] = { ...axis, ...layout[name] };
    const x = layout.xaxis.tickformat === "d" && !layout.xaxis.dtick ? data.flatMap((trace) => trace.x || []) : [];
    if (x.length) { // few whole numbers: one tick each
      const [least, most] = x.reduce(([low, high], at) => [Math.min(low, at), Math.max(high, at)], [x[0], x[0]]);
      if (most - least <= 6) layout.xaxis.dtick = 1;
    }
    return layout;
  }

  function plot(element, data, layout, height) {
    const shown = themed(data);
    reserve(element, data, layout, height);
    return Plotly.react(element, shown, laidOut(layout, height, shown, element.clientWidth || 480), CONFIG);
  }

  function reserve(element, data, layout, height) { // keeps the page from jumping when the figure is drawn
    element.style.minHeight = `${fullHeight(layout, height, data, element.clientWidth || 480)}px`;
  }

  // Saving ----------------------------------------------------------------------------------------------

  function save(name, type, text) {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([text], { type }));
    link.download = name;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  }

  function csv(columns, rows) {
    const word = (value) => {
      const text = value === null || value === undefined ? "" : String(value);
      return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
    };
    return [columns, ...rows].map((row) => row.map(word).join(",")).join("\n") + "\n";
  }

  function savePicture(element, name, format) {
    return Plotly.downloadImage(element, {
      format, filename: name, width: 900, height: element.layout.height || 420, scale: format === "png" ? 2 : 1,
    });
  }

  function tools(box, name, table, plots) {
    for (const button of box.querySelectorAll(":scope > .tools button[data-save]")) {
      button.addEventListener("click", () => {
        const kind = button.dataset.save;
        if (kind === "csv") {
          const { columns, rows } = table();
          save(`${name}.csv`, "text/csv", csv(columns, rows));
        } else {
          for (const [part, element] of plots()) savePicture(element, part, kind);
        }
      });
    }
  }

  // Figures ---------------------------------------------------------------------------------------------

  function makeFigure(box) {
    const name = box.dataset.figure;
    const figure = payload.figures[name];
    const element = box.querySelector(".plot");
    const slider = box.querySelector(".slider input");
    const draw = () => {
      const frame = slider ? figure.frames[Number(slider.value)] : null;
      if (frame) box.querySelector(".slider output").textContent = frame.label;
      return plot(element, frame ? frame.data : figure.data, figure.layout, figure.height);
    };
    if (slider) slider.addEventListener("input", draw);
    reserve(element, slider ? figure.frames[0].data : figure.data, figure.layout, figure.height);
    tools(box, name, () => figure, () => [[name, element]]);
    whenSeen(box, draw);
  }

  const watcher = new IntersectionObserver((entries) => {
    for (const entry of entries) {
      if (!entry.isIntersecting) continue;
      watcher.unobserve(entry.target);
      const draw = entry.target.drawNow;
      drawn.set(entry.target, draw);
      draw();
    }
  }, { rootMargin: "800px" });

  function whenSeen(box, draw) {
    box.drawNow = draw;
    watcher.observe(box);
  }

  // Weights between clients -----------------------------------------------------------------------------

  function makeNeighbours(box) {
    const view = payload.neighbours;
    const slider = box.querySelector(".slider input");
    const chosen = box.querySelector("select");
    const matrix = box.querySelector(".matrix");
    const graph = box.querySelector(".graph");
    const short = view.ofClients ? view.labels.map((_, place) => String(place)) : view.labels;
    const escaped = (text) => text.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");

    const draw = () => {
      const round = view.rounds[Number(slider.value)];
      box.querySelector(".slider output").textContent = `round ${round.round}`;
      drawMatrix(round);
      drawGraph(round, Number(chosen.value));
      tell(round, Number(chosen.value));
    };

    function drawMatrix(round) {
      const names = round.places.map((place) => escaped(short[place]));
      const number = (table, n, m) => (table && table[n][m] !== null ? table[n][m] : "–");
      const more = round.w.map((row, n) => row.map((_, m) => {
        const why = [];
        if (round.d) why.push(`distance ${number(round.d, n, m)}`);
        if (round.l) why.push(`left out ${number(round.l, n, m)}`);
        return why.length ? `<br>${why.join("<br>")}` : "";
      }));
      const trace = {
        type: "heatmap", z: round.w, x: names, y: names, customdata: more, colorscale: "Cividis", zmin: 0, zmax: 1,
        showscale: new Set(round.w.flat()).size > 1,
        xgap: 1, ygap: 1, colorbar: { thickness: 12, outlinewidth: 0 },
        hovertemplate: "%{y} gives %{x} a weight of %{z:.3f}%{customdata}<extra></extra>",
      };
      if (names.length <= 12) trace.texttemplate = "%{z:.2f}";
      plot(matrix, [trace], {
        xaxis: { type: "category", title: { text: "sender" }, showgrid: false },
        yaxis: { type: "category", title: { text: "receiver" }, autorange: "reversed", showgrid: false },
      }, touch ? 340 : 420);
    }

    function drawGraph(round, receiver) {
      const count = round.places.length;
      const at = round.places.map((_, n) => {
        const angle = Math.PI / 2 - (2 * Math.PI * n) / count;
        return [Math.cos(angle), Math.sin(angle)];
      });
      // One trace for all edges of similar weight: a Plotly line has one width.
      const others = round.w.flatMap((row, n) => row.filter((weight, m) => n !== m));
      const unit = Math.max(0.5 / count, ...others);
      const classes = [[0.66 * unit, 5], [0.33 * unit, 3], [0.1 * unit, 1.5]];
      const traces = [];
      for (const own of [false, true]) {
        for (const [index, [least, width]] of classes.entries()) {
          const most = index ? classes[index - 1][0] : Infinity;
          const x = [], y = [];
          round.w.forEach((row, n) => row.forEach((weight, m) => {
            const mine = round.places[n] === receiver;
            if (n === m || mine !== own || weight < least || weight >= most) return;
            x.push(at[n][0], at[m][0], null);
            y.push(at[n][1], at[m][1], null);
          }));
          traces.push({
            type: "scatter", mode: "lines", x, y, hoverinfo: "skip", showlegend: false,
            line: { width, color: own ? "#D55E00" : isDark() ? "rgba(200,210,220,0.25)" : "rgba(90,100,110,0.25)" },
          });
        }
      }
      traces.push({
        type: "scatter", mode: "markers+text", x: at.map((p) => p[0]), y: at.map((p) => p[1]), showlegend: false,
        text: round.places.map((place) => escaped(short[place])), textposition: "middle center", cliponaxis: false,
        hovertext: round.places.map((place, n) => `${escaped(view.labels[place])}<br>own weight ${round.w[n][n]}`),
        hoverinfo: "text", textfont: { color: "#ffffff", size: 11 },
        marker: {
          size: view.ofClients ? (count > 30 ? 16 : 24) : 34, line: { width: 0 },
          color: round.places.map((place) => (place === receiver ? "#B34E00" : "#00558A")),
        },
      });
      const hidden = { visible: false, range: [-1.2, 1.2] };
      plot(graph, traces, {
        xaxis: { ...hidden, scaleanchor: "y" }, yaxis: hidden, showlegend: false, hovermode: "closest",
      }, touch ? 340 : 420);
    }

    function tell(round, receiver) {
      const n = round.places.indexOf(receiver);
      const head = ["neighbour", "weight", ...(round.d ? ["distance"] : []), ...(round.l ? ["left out"] : [])];
      const cells = (tag, texts) => texts.map((text) => {
        const cell = document.createElement(tag);
        cell.textContent = text;
        return cell;
      });
      box.querySelector(".why thead tr").replaceChildren(...cells("th", head));
      const body = box.querySelector(".why tbody");
      if (n < 0) {
        const row = document.createElement("tr");
        row.replaceChildren(...cells("td", [`${view.labels[receiver]} did not take part in this round`]));
        body.replaceChildren(row);
        return;
      }
      const word = (value) => (value === null ? "–" : String(value));
      const order = round.places.map((_, m) => m).sort((a, b) => round.w[n][b] - round.w[n][a] || a - b);
      body.replaceChildren(...order.map((m) => {
        const row = document.createElement("tr");
        const own = round.places[m] === receiver ? " (itself)" : "";
        row.replaceChildren(...cells("td", [
          view.labels[round.places[m]] + own, word(round.w[n][m]),
          ...(round.d ? [word(round.d[n][m])] : []), ...(round.l ? [word(round.l[n][m])] : []),
        ]));
        return row;
      }));
    }

    function allRows() {
      const rows = [];
      for (const round of view.rounds) {
        round.w.forEach((row, n) => row.forEach((weight, m) => rows.push([
          round.round, view.labels[round.places[n]], view.labels[round.places[m]], weight,
          round.d ? round.d[n][m] : null, round.l ? round.l[n][m] : null,
        ])));
      }
      return { columns: ["round", "receiver", "sender", "weight", "distance", "left_out"], rows };
    }

    slider.addEventListener("input", draw);
    chosen.addEventListener("change", draw);
    tools(box, "neighbours", allRows, () => [["weights", matrix], ["graph", graph]]);
    whenSeen(box, draw);
  }

  // Tables ----------------------------------------------------------------------------------------------

  function makeTable(box) {
    const body = box.querySelector("tbody");
    const heads = [...box.querySelectorAll("th")];
    const rows = [...body.rows];
    const key = (row, column) => {
      const cell = row.cells[column];
      if (cell.dataset.value !== undefined) return Number(cell.dataset.value);
      return cell.textContent === "–" ? null : cell.textContent;
    };
    const compare = (a, b) => {
      if (typeof a === "number" && typeof b === "number") return a - b;
      return String(a).localeCompare(String(b), undefined, { numeric: true });
    };
    heads.forEach((head, column) => head.querySelector("button").addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") === "ascending";
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const keyed = rows.map((row) => [key(row, column), row]);
      keyed.sort(([a], [b]) => {
        if (a === null || b === null) return (a === null) - (b === null); // unknown values come last
        return down ? compare(b, a) : compare(a, b);
      });
      body.replaceChildren(...keyed.map(([, row]) => row));
    }));
    box.querySelector("input[type=search]").addEventListener("input", (event) => {
      const words = event.target.value.toLowerCase().split(/\s+/).filter(Boolean);
      for (const row of rows) {
        const text = row.textContent.toLowerCase();
        row.hidden = !words.every((word) => text.includes(word));
      }
    });
    tools(box, box.dataset.table, () => payload.tables[box.dataset.table], () => []);
  }

  function hintAtCut(scroll) {
    const hint = document.createElement("p");
    hint.className = "hint";
    hint.textContent = "Scroll inside the table to see more.";
    scroll.before(hint);
    const look = () => {
      const beyond = scroll.scrollWidth - scroll.clientWidth;
      scroll.classList.toggle("cut", beyond - scroll.scrollLeft > 2);
      hint.hidden = beyond <= 2 && scroll.scrollHeight - scroll.clientHeight <= 2;
    };
    new ResizeObserver(look).observe(scroll);
    scroll.addEventListener("scroll", look);
  }

  function makeSource(box) {
    box.querySelector("button").addEventListener("click", () => {
      save(`${box.querySelector("summary").textContent.trim()}`, "text/plain", box.querySelector("pre").textContent);
    });
  }

  // Light and dark --------------------------------------------------------------------------------------

  function redraw() {
    for (const draw of drawn.values()) draw();
  }

  document.getElementById("theme").addEventListener("click", (event) => {
    const next = { "": "light", light: "dark", dark: "" }[root.dataset.theme || ""];
    if (next) root.dataset.theme = next; else delete root.dataset.theme;
    event.target.textContent = `theme: ${next || "system"}`;
    redraw();
  });
  systemDark.addEventListener("change", redraw);
  let width = innerWidth;
  let waiting;
  addEventListener("resize", () => {
    clearTimeout(waiting);
    waiting = setTimeout(() => {
      if (width !== innerWidth) redraw(); // the height depends on the lines of the legend
      width = innerWidth;
    }, 150);
  });
  addEventListener("beforeprint", () => {
    for (const box of document.querySelectorAll("[data-figure], [data-neighbours]")) {
      if (!drawn.has(box)) box.drawNow();
    }
  });

  async function unpacked(id) {
    const text = document.getElementById(id).textContent.trim();
    const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    return new Response(stream).text();
  }

  async function begin() {
    root.dataset.drawing = "";
    document.querySelectorAll("[data-table]").forEach(makeTable);
    document.querySelectorAll(".source").forEach(makeSource);
    document.querySelectorAll(".scroll").forEach(hintAtCut);
    const figures = document.querySelectorAll("[data-figure], [data-neighbours]");
    if (figures.length) {
      const script = document.createElement("script");
      script.textContent = await unpacked("library");
      document.head.append(script);
    }
    document.querySelectorAll("[data-figure]").forEach(makeFigure);
    document.querySelectorAll("[data-neighbours]").forEach(makeNeighbours);
    root.dataset.ready = "";
  }

  begin().catch((error) => {
    delete root.dataset.drawing;
    const trouble = document.getElementById("trouble");
    trouble.textContent = `The figures cannot be drawn: ${error.message}. This page needs a browser from 2023 or later.`;
    trouble.hidden = false;
  });
})();
