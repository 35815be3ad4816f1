/** The picture on the node Pick Points: click to include, right click to exclude, drag to move, click a point to remove it.
 *
 * The node's text is the truth. This view holds no state but the drag: it shows the text, and every change rewrites the text.
 */
import { api } from "../../../scripts/api.js";
import { app } from "../../../scripts/app.js";
import { format, parse } from "./points.mjs";

const NODE = "AtelierPickPoints";
const LOOK = 150; // milliseconds between looks at the text and the picture: undo, paste and other nodes change them unannounced
const STEPS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
const HELP = "Click to include, right click to exclude, drag to move, click a point to remove it. Keys: Enter adds, - adds one "
    + "to exclude; on a point the arrows move (Shift: 10 pixels), + and - change its kind, Delete removes.";
const STYLE = `
.atelier-points { display: flex; flex-direction: column; gap: 4px; min-height: 280px; box-sizing: border-box; font: 12px sans-serif; }
.atelier-points .space { flex: 1; container-type: size; display: grid; place-items: center; overflow: hidden; }
.atelier-points .picture { position: relative; width: min(100cqw, 100cqh * var(--ratio)); aspect-ratio: var(--ratio); cursor: crosshair;
    background-size: 100% 100%; touch-action: none; user-select: none; outline-offset: -2px; }
.atelier-points .picture:focus-visible { outline: 2px solid #4f9cf9; }
.atelier-points button { position: absolute; width: 18px; height: 18px; margin: -9px 0 0 -9px; padding: 0; border: 2px solid #fff; border-radius: 50%;
    background: #12833b; color: #fff; font: bold 14px/12px sans-serif; cursor: move; box-shadow: 0 0 3px #000; }
.atelier-points button.exclude { background: #c42b1c; border-radius: 4px; }
.atelier-points button:focus-visible { outline: 3px solid #4f9cf9; }
.atelier-points .note { text-align: center; color: var(--input-text, #ddd); min-height: 15px; }`;

app.registerExtension({
    name: "PortraitAtelier.PickPoints",
    setup() {
        document.head.append(Object.assign(document.createElement("style"), { textContent: STYLE }));
    },
    nodeCreated(node) {
        if (node.constructor.comfyClass === NODE) addView(node);
    },
});

function addView(node) {
    const [root, space, picture, note] = ["atelier-points", "space", "picture", "note"].map((name) =>
        Object.assign(document.createElement("div"), { className: name }));
    space.append(picture);
    root.append(space, note);
    picture.tabIndex = 0;
    picture.title = HELP;
    picture.setAttribute("role", "application");
    picture.setAttribute("aria-label", HELP);
    root.dataset.testid = "atelier-points";

    const text = node.widgets.find((widget) => widget.name === "points");
    let size = null; // [width, height] of the picture, once it is loaded
    let points = []; // what the text says; null: nothing that could be edited here
    let drag = null;

    const write = (changed) => {
        text.value = format(changed);
        text.callback?.(text.value);
        node.graph.setDirtyCanvas(true, true);
        show();
    };
    const writeByKey = (changed, focus) => {
        app.canvas.emitBeforeChange(); // a step for undo; with the mouse the editor makes one at every release of a button
        write(changed);
        app.canvas.emitAfterChange();
        (picture.children[focus] ?? picture).focus();
    };
    const pixel = ([x, y]) => ({ x: Math.max(0, Math.min(size[0] - 1, Math.floor(x))), y: Math.max(0, Math.min(size[1] - 1, Math.floor(y))) });
    const under = (event) => {
        const box = picture.getBoundingClientRect(); // as it is on the screen, whatever the zoom
        return pixel([(event.clientX - box.left) / box.width * size[0], (event.clientY - box.top) / box.height * size[1]]);
    };
    const numberOf = (element) => [...picture.children].indexOf(element);

    function show() {
        const linked = node.inputs.some((input) => input.widget?.name === "points" && input.link != null);
        points = linked ? null : parse(String(text.value));
        picture.style.display = size ? "" : "none";
        if (size) {
            const focused = numberOf(document.activeElement);
            picture.style.setProperty("--ratio", size[0] / size[1]);
            picture.replaceChildren(...(points ?? []).map(({ x, y, exclude }) => {
                const mark = document.createElement("button");
                mark.type = "button";
                mark.className = exclude ? "exclude" : "include";
                mark.textContent = exclude ? "−" : "+";
                mark.setAttribute("aria-label", `${exclude ? "Exclude" : "Include"} ${x}, ${y}`);
                mark.style.left = `${(Math.floor(x) + 0.5) / size[0] * 100}%`;
                mark.style.top = `${(Math.floor(y) + 0.5) / size[1] * 100}%`;
                return mark;
            }));
            picture.children[focused]?.focus();
        }
        const outside = size && points ? points.filter(({ x, y }) => x >= size[0] || y >= size[1]).length : 0;
        note.textContent = linked ? "The points come from another node."
            : !points ? "The text is no list of points such as +120,80 -40,30."
                : !size ? "Connect a picture. One that is made on the way shows after a run."
                    : outside ? `${outside} of ${points.length} points outside the picture of ${size[0]} x ${size[1]}.`
                        : points.length ? "" : "Click to include, right click to exclude.";
    }

    picture.addEventListener("pointerdown", (event) => {
        event.stopPropagation();
        if (!points || event.button === 1) return;
        const number = numberOf(event.target);
        drag = { number, from: [event.clientX, event.clientY], moved: false, added: number < 0 };
        if (drag.added) {
            drag.number = points.length;
            write([...points, { ...under(event), exclude: event.button === 2 || event.ctrlKey }]);
        }
        picture.setPointerCapture(event.pointerId);
    });
    picture.addEventListener("pointermove", (event) => {
        if (!drag || !points?.[drag.number]) return;
        drag.moved ||= Math.hypot(event.clientX - drag.from[0], event.clientY - drag.from[1]) > 3;
        if (drag.moved) write(points.map((point, i) => (i === drag.number ? { ...point, ...under(event) } : point)));
    });
    picture.addEventListener("pointerup", () => {
        if (drag && points && !drag.moved && !drag.added) write(points.filter((_, i) => i !== drag.number));
        drag = null;
    });
    picture.addEventListener("pointercancel", () => { drag = null; });
    root.addEventListener("contextmenu", (event) => { // right click is ours, not the canvas menu's
        event.preventDefault();
        event.stopPropagation();
    });
    root.addEventListener("wheel", (event) => { // on the canvas renderer this element covers the canvas
        if (!LiteGraph.vueNodesMode) app.canvas.processMouseWheel(event);
    });
    picture.addEventListener("keydown", (event) => {
        if (!points || event.ctrlKey || event.metaKey || event.altKey) return;
        const number = numberOf(event.target), point = points[number];
        const changed = (change) => points.map((other, i) => (i === number ? { ...other, ...change } : other));
        if (!point && ["Enter", " ", "+", "-"].includes(event.key)) {
            writeByKey([...points, { ...pixel([size[0] / 2, size[1] / 2]), exclude: event.key === "-" }], points.length);
        } else if (point && event.key in STEPS) {
            const [right, down] = STEPS[event.key], step = event.shiftKey ? 10 : 1;
            writeByKey(changed(pixel([point.x + right * step, point.y + down * step])), number);
        } else if (point && ["+", "-"].includes(event.key)) {
            writeByKey(changed({ exclude: event.key === "-" }), number);
        } else if (point && ["Delete", "Backspace", "Enter", " "].includes(event.key)) {
            writeByKey(points.filter((_, i) => i !== number), Math.min(number, points.length - 2));
        } else if (event.key in STEPS || ["Delete", "Backspace"].includes(event.key)) {
            // on the bare picture: nothing to do, and the editor must not delete or move the node
        } else return;
        event.preventDefault();
        event.stopPropagation();
    });

    // Nodes 2.0 goes on showing the view of a node that undo has replaced.
    const mount = () => {
        const old = node.graph === app.canvas.graph && document.querySelector(`[data-node-id="${node.id}"] .atelier-points`);
        if (!old) return false;
        const focused = old.contains(document.activeElement);
        old.replaceWith(root);
        if (focused) picture.focus();
        return true;
    };

    let seen = null, address = null;
    const look = () => {
        if (!root.isConnected && !mount()) return;
        const url = pictureOf(node);
        if (url !== address) {
            address = url;
            size = null;
            seen = null;
            const image = new Image();
            image.onload = () => {
                if (address !== url) return;
                size = [image.naturalWidth, image.naturalHeight];
                picture.style.backgroundImage = `url("${url}")`;
                seen = null;
            };
            if (url) image.src = url;
        }
        const now = JSON.stringify([text.value, size, node.inputs.map((input) => input.link)]);
        if (now !== seen && !drag) {
            seen = now;
            show();
        }
    };
    const timer = setInterval(look, LOOK);
    const removed = node.onRemoved;
    node.onRemoved = function (...rest) {
        clearInterval(timer);
        removed?.apply(this, rest);
    };
    node.addDOMWidget("picture", "atelier_points", root, { serialize: false, hideOnZoom: false, getMinHeight: () => 300 });
    node.setSize([Math.max(node.size[0], 340), Math.max(node.size[1], 440)]);
}

/** The address of the picture that goes into the node: that of a node which offers pictures, else the one of the last run. */
function pictureOf(node) {
    const source = sourceOf(node, node.findInputSlot("image"));
    const offers = source && !source.inputs?.some((input) => input.type === "IMAGE");
    const shown = (offers && outputs(source)?.images?.[0]) || outputs(node)?.picture?.[0];
    return source && shown ? api.apiURL(`/view?${new URLSearchParams(shown)}`) : null;
}

function outputs(node) {
    return app.nodeOutputs[node.graph.isRootGraph ? node.id : `${node.graph.id}:${node.id}`];
}

/** The node that a socket is connected to, through the borders of subgraphs. */
function sourceOf(node, slot) {
    const link = node.graph.getLink(node.inputs[slot].link);
    if (!link) return null;
    const origin = node.graph.getNodeById(link.origin_id);
    if (origin) return origin.isSubgraphNode() ? origin.resolveSubgraphOutputLink(link.origin_slot)?.outputNode ?? null : origin;
    const graphs = [app.rootGraph, ...app.rootGraph.subgraphs.values()];
    const outside = graphs.flatMap((graph) => graph.nodes).find((other) => other.subgraph === node.graph);
    return outside ? sourceOf(outside, link.origin_slot) : null;
}
