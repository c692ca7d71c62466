"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const UNITS = { ane: "Neural Engine", gpu: "GPU", cpu: "CPU", none: "no place of its own" };

  function make(tag, className, text) {
    const element = document.createElement(tag);
    if (className) element.className = className;
    if (text !== undefined) element.textContent = text;
    return element;
  }

  function stage(section, { operations, findings }) {
    const strip = section.querySelector(".strip");
    const about = section.querySelector(".about");
    const cells = [...strip.querySelectorAll(".op")];
    let chosen = -1;
    let wanted = "all";

    function show(index) {
      if (index === chosen) return;
      if (chosen >= 0) cells[chosen].classList.remove("on");
      chosen = index;
      const [name, type, unit, module, shapes, work, found] = operations[index];
      cells[index].classList.add("on");
      strip.setAttribute("aria-activedescendant", cells[index].id);
      about.className = `about ${unit}`;
      const parts = [make("h4", "", `${index + 1}. ${type}${module ? `, ${module}` : ""}`)];
      parts.push(make("p", "soft", `${name}: ${shapes}; ${UNITS[unit]}${work ? `; ${work}` : ""}`));
      if (!found.length) parts.push(make("p", "", unit === "none" ? "Not counted: Core ML's plans give it no device." : "No rule is against it."));
      for (const [place, what] of found) {
        const finding = findings[place];
        const line = make("p");
        line.append(make("span", `badge ${finding.section}`, finding.label), ` ${what}. `, make("span", "soft", `${finding.rule}. `));
        line.append(`Remedy: ${finding.remedy}.`);
        parts.push(line);
      }
      about.replaceChildren(...parts);
    }

    const shown = (index) => !cells[index].classList.contains("dim");
    function step(from, by) {
      for (let index = from + by; index >= 0 && index < cells.length; index += by) if (shown(index)) return index;
      return from;
    }
    /* The operation above or below: the nearest cell of the next row of the wrapped strip. */
    function across(from, direction) {
      const here = cells[from].getBoundingClientRect();
      let best = from;
      let least = Infinity;
      cells.forEach((cell, index) => {
        if (!shown(index)) return;
        const there = cell.getBoundingClientRect();
        const down = (there.bottom - here.bottom) * direction;
        if (down < 4) return;
        const distance = down * 50 + Math.abs(there.left - here.left);
        if (distance < least) [best, least] = [index, distance];
      });
      return best;
    }

    strip.addEventListener("pointerover", (event) => {
      const cell = event.target.closest(".op");
      if (cell) show(cells.indexOf(cell));
    });
    strip.addEventListener("click", (event) => {
      const cell = event.target.closest(".op");
      if (cell) show(cells.indexOf(cell));
    });
    strip.addEventListener("focus", () => {
      if (chosen < 0 && cells.length) show(step(-1, 1) < 0 ? 0 : step(-1, 1));
    });
    strip.addEventListener("keydown", (event) => {
      if (chosen < 0) return;
      const moves = {
        ArrowRight: () => step(chosen, 1),
        ArrowLeft: () => step(chosen, -1),
        ArrowDown: () => across(chosen, 1),
        ArrowUp: () => across(chosen, -1),
        Home: () => step(-1, 1),
        End: () => step(cells.length, -1),
      };
      const move = moves[event.key];
      if (!move) return;
      event.preventDefault();
      show(Math.max(0, move()));
      cells[chosen].scrollIntoView({ block: "nearest" });
    });

    function filter(section_) {
      wanted = section_;
      cells.forEach((cell, index) => {
        const has = operations[index][6].some(([place]) => findings[place].section === wanted);
        cell.classList.toggle("dim", wanted !== "all" && !has);
      });
      section.querySelectorAll("tr[data-section]").forEach((row) => {
        row.hidden = wanted !== "all" && row.dataset.section !== wanted;
      });
      section.querySelectorAll(".filters button").forEach((button) => {
        button.setAttribute("aria-pressed", String(button.dataset.show === wanted));
      });
    }
    section.querySelectorAll(".filters button").forEach((button) => button.addEventListener("click", () => filter(button.dataset.show)));
  }

  document.querySelectorAll("section[data-stage]").forEach((section) => stage(section, data[section.dataset.stage]));
})();
