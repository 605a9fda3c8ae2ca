// A contig's windows and frames along its sequence, coloured by score.
"use strict";

const MOST_TILES = 1200; // windows beside each other; of a longer contig, neighbours share a tile
const FRAME_LANES = ["F1", "F2", "F3", "R1", "R2", "R3"];

const tint = score => {
    const far = Math.round(Math.abs(score - 0.5) * 200);
    return `color-mix(in oklab, var(--${score >= 0.5 ? "virus" : "other"}) ${far}%, var(--mid))`;
};

function drawMap(windows, stretches, length, width) {
    const left = width < 520 ? 78 : 116,
        right = width - 6,
        scale = (right - left) / length;
    const lanes = [{ key: "both", label: "Windows", height: 18 }, { gap: 6 }];
    for (const frame of FRAME_LANES) lanes.push({ key: frame, label: frame, height: 11 });
    if (windows[0]?.nucleotide)
        lanes.push(
            { gap: 8 },
            { key: "nucleotide", label: width < 520 ? "Nucleotides" : "Nucleotides alone", height: 12 },
            { key: "protein", label: width < 520 ? "Protein" : "Protein alone", height: 12 },
        );
    if (stretches.length) lanes.push({ gap: 8 }, { key: "regions", label: "Regions", height: 10 });
    const svg = make("svg", {
        class: "map",
        role: "img",
        "aria-label": "Scores of the contig's windows and frames along its sequence",
    });
    const at = base => left + base * scale;
    const tile = (x0, x1, y, height, score, said) => {
        const rect = make(
            "rect",
            { x: at(x0).toFixed(2), y, width: Math.max((x1 - x0) * scale - 0.4, 0.8).toFixed(2), height },
            make("title", { text: said }),
        );
        rect.style.fill = tint(score);
        svg.append(rect);
    };
    const together = Math.ceil(windows.length / MOST_TILES);
    const mean = values => values.reduce((sum, value) => sum + value, 0) / values.length;
    let y = 2;
    for (const { key, label, height, gap } of lanes) {
        if (gap) {
            y += gap;
            continue;
        }
        svg.append(make("text", { x: left - 8, y: y + height / 2 + 3.5, "text-anchor": "end", text: label }));
        svg.append(make("rect", { class: "lane", x: left, y, width: right - left, height }));
        for (let i = 0; i < windows.length && key !== "regions"; i += together) {
            const part = windows.slice(i, i + together);
            const place = `${number(part[0].start + 1)}–${number(part.at(-1).end)}`;
            if (FRAME_LANES.includes(key)) {
                const own = part.flatMap(one =>
                    one.frames.filter(frame => frame.frame.toUpperCase() === key),
                );
                if (!own.length) continue;
                const run = own.every(frame => frame.frame !== key);
                const score = mean(own.map(frame => frame.both));
                const said = `${place}, ${key}${run ? ", longest run" : ""}: ${score.toFixed(4)}`;
                if (run) tile(own[0].start, own.at(-1).end, y + height / 2 - 1.5, 3, score, said);
                else tile(part[0].left, part.at(-1).right, y, height, score, said);
            } else {
                const score = mean(part.map(one => one[key].score));
                const which =
                    part.length > 1
                        ? `windows ${part[0].number}–${part.at(-1).number}`
                        : `window ${part[0].number}`;
                tile(
                    part[0].left,
                    part.at(-1).right,
                    y,
                    height,
                    score,
                    `${which}, ${place}: ${score.toFixed(4)}`,
                );
            }
        }
        if (key === "regions")
            for (const [start, end, count, score] of stretches)
                svg.append(
                    make(
                        "rect",
                        {
                            class: "region",
                            x: at(start).toFixed(2),
                            y,
                            width: Math.max((end - start) * scale, 2).toFixed(2),
                            height,
                        },
                        make("title", {
                            text: `provirus ${number(start + 1)}–${number(end)}, ${count} windows, mean score ${score.toFixed(4)}`,
                        }),
                    ),
                );
        y += height + 2;
    }
    y += 3;
    const step = roundStep(length / Math.max(2, Math.floor((right - left) / 80)));
    svg.append(make("line", { class: "axis", x1: left, x2: right, y1: y, y2: y }));
    for (let base = 0; base <= length; base += step) {
        svg.append(make("line", { class: "axis", x1: at(base), x2: at(base), y1: y, y2: y + 4 }));
        svg.append(
            make("text", {
                x: at(base),
                y: y + 16,
                "text-anchor": !base ? "start" : at(base) > right - 16 ? "end" : "middle",
                text: baseLabel(base, step),
            }),
        );
    }
    y += 20;
    svg.setAttribute("viewBox", `0 0 ${width} ${y}`);
    svg.setAttribute("height", y);
    return { svg, together };
}

function roundStep(least) {
    const power = 10 ** Math.floor(Math.log10(Math.max(least, 1)));
    return power * [1, 2, 5, 10].find(k => k * power >= least);
}

const baseLabel = (base, step) =>
    step >= 1e6 ? `${base / 1e6} Mb` : step >= 500 ? `${base / 1e3} kb` : number(base);

const legend = () =>
    make(
        "p",
        { class: "legend", "aria-hidden": true },
        make("span", { text: "other 0" }),
        make("i"),
        make("span", { text: "1 virus" }),
    );
