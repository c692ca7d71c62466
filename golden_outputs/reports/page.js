"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const drawn = [];
  const dark = matchMedia("(prefers-color-scheme: dark)");

  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();

  function make(tag, className, text) {
    const element = document.createElement(tag);
    if (className) element.className = className;
    if (text !== undefined) element.textContent = text;
    return element;
  }

  function bytes(base64) {
    const text = atob(base64);
    const found = new Uint8Array(text.length);
    for (let i = 0; i < text.length; i++) found[i] = text.charCodeAt(i);
    return found;
  }

  const samples = (base64) => new Int16Array(bytes(base64).buffer);

  /* A figure with a canvas that is drawn at the screen's own resolution, and again when its size or the colours change. */
  function plot(caption, height, draw, wide) {
    const figure = make("figure", wide ? "wide" : "");
    const title = make("figcaption");
    title.append(...caption);
    const canvas = make("canvas");
    canvas.style.height = `${height}px`;
    canvas.setAttribute("role", "img");
    canvas.setAttribute("aria-label", title.textContent);
    figure.append(title, canvas);
    const paint = () => {
      const ratio = Math.min(window.devicePixelRatio || 1, 2);
      const width = canvas.clientWidth;
      if (!width) return;
      canvas.width = Math.round(width * ratio);
      canvas.height = Math.round(height * ratio);
      const context = canvas.getContext("2d");
      context.scale(ratio, ratio);
      draw(context, width, height);
    };
    drawn.push(paint);
    new ResizeObserver(paint).observe(canvas);
    return figure;
  }

  /* ---------------------------------------------------------------- colours of maps */
  const HEAT = [[9, 10, 30], [52, 20, 92], [120, 28, 109], [187, 55, 84], [237, 105, 37], [252, 180, 50], [250, 250, 170]];
  const DIVIDED = [[20, 70, 150], [90, 150, 215], [190, 215, 235], [244, 244, 242], [245, 205, 180], [222, 120, 85], [150, 30, 40]];

  function ramp(stops) {
    const table = new Uint8ClampedArray(256 * 3);
    for (let i = 0; i < 256; i++) {
      const place = (i / 255) * (stops.length - 1);
      const low = Math.min(Math.floor(place), stops.length - 2);
      for (let c = 0; c < 3; c++) table[3 * i + c] = stops[low][c] + (stops[low + 1][c] - stops[low][c]) * (place - low);
    }
    return table;
  }
  const heat = ramp(HEAT);
  const divided = ramp(DIVIDED);

  function image(values, rows, columns, table) {
    const canvas = document.createElement("canvas");
    canvas.width = columns;
    canvas.height = rows;
    const context = canvas.getContext("2d");
    const pixels = context.createImageData(columns, rows);
    for (let row = 0; row < rows; row++) {
      for (let column = 0; column < columns; column++) {
        const value = values[row * columns + column];
        const at = 4 * ((rows - 1 - row) * columns + column); /* the first row lies at the bottom */
        for (let c = 0; c < 3; c++) pixels.data[at + c] = table[3 * value + c];
        pixels.data[at + 3] = 255;
      }
    }
    context.putImageData(pixels, 0, 0);
    return canvas;
  }

  function map(title, values, rows, columns, table, note, smooth, wide) {
    const picture = image(values, rows, columns, table);
    return plot([make("span", "", title), make("span", "", note)], smooth ? 190 : 170, (context, width, height) => {
      context.imageSmoothingEnabled = smooth;
      context.drawImage(picture, 0, 0, width, height);
    }, wide);
  }

  /* ---------------------------------------------------------------- audio */
  function wave(pcm, rate) {
    const buffer = new ArrayBuffer(44 + pcm.length * 2);
    const view = new DataView(buffer);
    const text = (at, word) => [...word].forEach((letter, i) => view.setUint8(at + i, letter.charCodeAt(0)));
    text(0, "RIFF");
    view.setUint32(4, 36 + pcm.length * 2, true);
    text(8, "WAVEfmt ");
    view.setUint32(16, 16, true);
    view.setUint16(20, 1, true);
    view.setUint16(22, 1, true);
    view.setUint32(24, rate, true);
    view.setUint32(28, rate * 2, true);
    view.setUint16(32, 2, true);
    view.setUint16(34, 16, true);
    text(36, "data");
    view.setUint32(40, pcm.length * 2, true);
    new Int16Array(buffer, 44).set(pcm);
    return URL.createObjectURL(new Blob([buffer], { type: "audio/wav" }));
  }

  function player(title, pcm, rate) {
    const figure = make("figure");
    const caption = make("figcaption");
    caption.append(make("span", "", title));
    const audio = make("audio");
    audio.controls = true;
    audio.preload = "metadata";
    audio.src = wave(pcm, rate);
    audio.setAttribute("aria-label", title);
    audio.addEventListener("play", () => document.querySelectorAll("audio").forEach((other) => other !== audio && other.pause()));
    figure.append(caption, audio);
    return figure;
  }

  /* In-place radix-2 Fourier transform. */
  function transform(real, imaginary) {
    const size = real.length;
    for (let i = 1, j = 0; i < size; i++) {
      let bit = size >> 1;
      for (; j & bit; bit >>= 1) j ^= bit;
      j ^= bit;
      if (i < j) {
        [real[i], real[j]] = [real[j], real[i]];
        [imaginary[i], imaginary[j]] = [imaginary[j], imaginary[i]];
      }
    }
    for (let length = 2; length <= size; length *= 2) {
      const angle = (-2 * Math.PI) / length;
      for (let k = 0; k < length / 2; k++) {
        const c = Math.cos(angle * k);
        const s = Math.sin(angle * k);
        for (let start = k; start < size; start += length) {
          const other = start + length / 2;
          const r = real[other] * c - imaginary[other] * s;
          const m = real[other] * s + imaginary[other] * c;
          real[other] = real[start] - r;
          imaginary[other] = imaginary[start] - m;
          real[start] += r;
          imaginary[start] += m;
        }
      }
    }
  }

  const SIZE = 1024;
  const MEL_ROWS = 96;
  const FLOOR = -90; /* dB below full scale where a spectrogram begins */

  function spectrogram(pcm, rate) {
    const columns = Math.max(1, Math.min(420, Math.floor(pcm.length / 64)));
    const mel = (hertz) => 2595 * Math.log10(1 + hertz / 700);
    const hertz = (value) => 700 * (10 ** (value / 2595) - 1);
    const edges = Array.from({ length: MEL_ROWS + 1 }, (_, i) => (hertz((i / MEL_ROWS) * mel(rate / 2)) / rate) * SIZE);
    const window = Float64Array.from({ length: SIZE }, (_, i) => 0.5 - 0.5 * Math.cos((2 * Math.PI * i) / SIZE));
    const found = new Uint8Array(MEL_ROWS * columns);
    const real = new Float64Array(SIZE);
    const imaginary = new Float64Array(SIZE);
    for (let column = 0; column < columns; column++) {
      const centre = Math.round(((column + 0.5) / columns) * pcm.length) - SIZE / 2;
      for (let i = 0; i < SIZE; i++) {
        const at = centre + i;
        real[i] = at >= 0 && at < pcm.length ? (pcm[at] / 32768) * window[i] : 0;
      }
      imaginary.fill(0);
      transform(real, imaginary);
      for (let row = 0; row < MEL_ROWS; row++) {
        const first = Math.floor(edges[row]);
        const last = Math.max(first + 1, Math.ceil(edges[row + 1]));
        let most = 0;
        for (let bin = first; bin < last && bin <= SIZE / 2; bin++) most = Math.max(most, Math.hypot(real[bin], imaginary[bin]));
        const decibels = 20 * Math.log10((most * 4) / SIZE + 1e-9);
        found[row * columns + column] = Math.max(0, Math.min(255, Math.round((255 * (decibels - FLOOR)) / -FLOOR)));
      }
    }
    return { values: found, columns };
  }

  function waveform(evidence, reference, actual) {
    const key = make("span");
    key.append(make("span", "key one", "reference"), make("span", "key two", "actual"));
    return plot([make("span", "", `waveform, ${evidence.shown} s`), key], 120, (context, width, height) => {
      let peak = 1;
      for (const side of [reference, actual]) for (let i = 0; i < side.length; i++) peak = Math.max(peak, Math.abs(side[i]));
      const trace = (side, name, alpha) => {
        context.fillStyle = colour(name);
        context.globalAlpha = alpha;
        for (let x = 0; x < width; x++) {
          const start = Math.floor((x / width) * side.length);
          const stop = Math.max(start + 1, Math.floor(((x + 1) / width) * side.length));
          let low = Infinity;
          let high = -Infinity;
          for (let i = start; i < stop && i < side.length; i++) {
            low = Math.min(low, side[i]);
            high = Math.max(high, side[i]);
          }
          if (low > high) continue;
          const place = (value) => height / 2 - (value / peak) * (height / 2 - 6);
          context.fillRect(x, place(high), 1, Math.max(1, place(low) - place(high)));
        }
        context.globalAlpha = 1;
      };
      trace(actual, "two", 1);
      trace(reference, "one", 0.72);
      context.strokeStyle = colour("line");
      context.beginPath();
      context.moveTo(0, height / 2);
      context.lineTo(width, height / 2);
      context.stroke();
    }, true);
  }

  /* ---------------------------------------------------------------- per-frame error */
  function curve(evidence, lines) {
    const least = Math.min(...evidence.curve);
    const caption = [make("span", "", "SNR of each frame, dB (higher is nearer)"), make("span", "", `least ${least > 190 ? "exact" : least.toFixed(1)}`)];
    return plot(caption, 130, (context, width, height) => {
      const shown = evidence.curve.map((value) => Math.max(-40, Math.min(160, value)));
      const borders = Object.entries(lines);
      const all = [...shown, ...borders.map(([, value]) => value)];
      const low = Math.floor((Math.min(...all) - 5) / 10) * 10;
      const high = Math.ceil((Math.max(...all) + 5) / 10) * 10;
      const left = 34;
      const y = (value) => 6 + (height - 12) * (1 - (value - low) / (high - low));
      const x = (i) => left + (width - left - 6) * (shown.length > 1 ? i / (shown.length - 1) : 0.5);
      context.font = "11px system-ui, sans-serif";
      context.textBaseline = "middle";
      context.fillStyle = colour("soft");
      context.strokeStyle = colour("line");
      const step = high - low > 120 ? 40 : high - low > 60 ? 20 : 10;
      for (let tick = Math.ceil(low / step) * step; tick <= high; tick += step) {
        context.textAlign = "right";
        if (y(tick) > 8 && y(tick) < height - 8) context.fillText(tick, left - 6, y(tick));
        context.beginPath();
        context.moveTo(left, y(tick));
        context.lineTo(width, y(tick));
        context.stroke();
      }
      for (const [name, value] of borders) {
        context.strokeStyle = colour(name);
        context.setLineDash([5, 4]);
        context.beginPath();
        context.moveTo(left, y(value));
        context.lineTo(width, y(value));
        context.stroke();
        context.setLineDash([]);
        context.fillStyle = colour(name);
        context.textAlign = "right";
        context.fillText(name === "good" ? "good from here up" : "broken below", width - 8, y(value) + 9);
      }
      context.strokeStyle = colour("one");
      context.lineWidth = 1.6;
      context.lineJoin = "round";
      context.beginPath();
      shown.forEach((value, i) => (i ? context.lineTo(x(i), y(value)) : context.moveTo(x(i), y(value))));
      context.stroke();
      if (shown.length === 1) {
        context.fillStyle = colour("one");
        context.beginPath();
        context.arc(x(0), y(shown[0]), 4, 0, 7);
        context.fill();
      }
    }, true);
  }

  /* ---------------------------------------------------------------- a check's panel */
  function cause(explanation) {
    const box = make("div", "cause");
    const line = make("div", "", "First departs at ");
    line.append(make("code", "", `${explanation.operation || "?"} (${explanation.operation_type || "?"})`));
    if (explanation.module) line.append(", module ", make("code", "", explanation.module));
    box.append(line);
    if (explanation.text) box.append(make("div", "", explanation.text));
    return box;
  }

  function fill(panel, check) {
    if (check.explanation) panel.append(cause(check.explanation));
    if (check.metrics.length) {
      const list = make("dl", "metrics");
      for (const [name, value] of check.metrics) {
        const item = make("div");
        item.append(make("dt", "", name), make("dd", "", value));
        list.append(item);
      }
      panel.append(list);
    }
    const evidence = check.evidence;
    if (check.left_out) panel.append(make("p", "note", check.left_out));
    if (!evidence) return;
    const plots = make("div", "plots");
    if (evidence.rate) {
      const [reference, actual, difference] = [evidence.reference, evidence.actual, evidence.difference].map(samples);
      const gain = evidence.gain_db > 0 ? `, ${evidence.gain_db} dB louder` : "";
      const players = make("div", "players");
      players.append(
        player("reference", reference, evidence.rate),
        player("actual", actual, evidence.rate),
        player(`difference${gain}`, difference, evidence.rate),
      );
      panel.append(players);
      plots.append(waveform(evidence, reference, actual));
      for (const [name, side] of [["reference", reference], ["actual", actual]]) {
        const found = spectrogram(side, evidence.rate);
        plots.append(map(`spectrogram, ${name}`, found.values, MEL_ROWS, found.columns, heat, `0 to ${evidence.rate / 2000} kHz, mel`, true));
      }
      plots.append(curve(evidence, check.lines));
      panel.append(plots);
      if (evidence.shown < evidence.seconds) panel.append(make("p", "note", `The first ${evidence.shown} s of ${evidence.seconds} s; the metrics are of all of it.`));
      if (evidence.clipped) panel.append(make("p", "note", "The actual audio goes beyond full scale; it is cut there for drawing and playing."));
      return;
    }
    plots.classList.add("three");
    const size = [evidence.rows, evidence.columns];
    const scale = `${evidence.low.toPrecision(2)} to ${evidence.high.toPrecision(2)}`;
    plots.append(
      map("reference", bytes(evidence.reference), ...size, divided, scale),
      map("actual", bytes(evidence.actual), ...size, divided, scale),
      map("error", bytes(evidence.error), ...size, heat, "-100 to 0 dB of RMS"),
      curve(evidence, check.lines),
    );
    panel.append(plots, make("p", "note", `Maps: ${evidence.rows} of ${evidence.channels} channels upwards, ${evidence.frames} frames to the right.`));
  }

  function unfold(row, open) {
    const button = row.querySelector(".unfold");
    if (!button) return;
    const last = row.nextElementSibling?.classList.contains("why") ? row.nextElementSibling : row;
    let detail = last.nextElementSibling?.classList.contains("detail") ? last.nextElementSibling : null;
    if (!detail) {
      detail = make("tr", "detail");
      detail.dataset.of = row.dataset.index;
      const cell = make("td");
      cell.colSpan = 8;
      detail.append(cell);
      last.after(detail);
      fill(cell, data.checks[row.dataset.index]);
    }
    const shown = open ?? button.getAttribute("aria-expanded") !== "true";
    detail.hidden = !shown;
    button.setAttribute("aria-expanded", String(shown));
  }

  function filter(button) {
    document.querySelectorAll(".filters button").forEach((other) => other.setAttribute("aria-pressed", String(other === button)));
    const { show, stage } = button.dataset;
    document.querySelectorAll("#checks tbody").forEach((group) => {
      let visible = 0;
      let kept = true;
      for (const row of group.rows) {
        if (row.classList.contains("check")) {
          kept = show === "all" || (show === "bad" && !row.classList.contains("good")) || (show === "stage" && group.dataset.stage === stage);
          visible += kept;
        }
        if (row.classList.contains("group")) continue;
        if (row.classList.contains("detail")) {
          const opener = group.querySelector(`tr.check[data-index="${row.dataset.of}"] .unfold`);
          row.hidden = !kept || opener.getAttribute("aria-expanded") !== "true";
        } else row.hidden = !kept;
      }
      group.hidden = !visible;
    });
  }

  document.querySelector("#checks").addEventListener("click", (event) => {
    const button = event.target.closest(".filters button");
    if (button) return filter(button);
    const row = event.target.closest("tr.check");
    if (row) unfold(row);
  });
  dark.addEventListener("change", () => drawn.forEach((paint) => paint()));
  if (data.listen !== null) fill(document.querySelector("#listen .panel"), data.checks[data.listen]);
  [...document.querySelectorAll("tr.check.broken, tr.check.degraded")].slice(0, 2).forEach((row) => unfold(row, true));
})();
