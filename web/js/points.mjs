/** Points on a picture as the text that the node Pick Points holds: "+120,80 -40,30". "+" includes and may be left out. */

const POINT = /^([+-]?)([0-9]{1,9})(?:\.[0-9]+)?,([0-9]{1,9})(?:\.[0-9]+)?$/;

/** text -> [{x, y, exclude}], or null where the text is no list of points. The same rules as segmentation/prompts.py. */
export function parse(text) {
    const words = text.replace(/\s+/g, " ").replace(/ ?, ?/g, ",").replace(/([+-]) /g, "$1").split(/[ ;]/).filter(Boolean);
    const found = words.map((word) => word.match(POINT));
    return found.includes(null) ? null : found.map(([, sign, x, y]) => ({ x: +x, y: +y, exclude: sign === "-" }));
}

export function format(points) {
    return points.map(({ x, y, exclude }) => `${exclude ? "-" : "+"}${x},${y}`).join(" ");
}
